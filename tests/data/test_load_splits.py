"""Finding data, holding splits out, mapping columns."""

from __future__ import annotations

import json
import random

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def put(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count, start=0):
    return [{"text": f"text {i}", "label": i % 3} for i in range(start, start + count)]


def message(*args, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(*args, **options)
    return str(caught.value)


def texts(split) -> list[str]:
    return sorted(split.rows["text"][:])


def test_files_by_split_and_several_files_of_one(tmp_path):
    a, b = put(tmp_path / "a.jsonl", rows(3)), put(tmp_path / "b.jsonl", rows(2, 10))
    splits = load_splits(train=[a, b], validation=b, test_fraction=0.2)
    assert {k: len(s) for k, s in splits.items()} == {"train": 4, "validation": 2, "test": 1}
    places = {splits[k].where(i) for k in ("train", "test") for i in range(len(splits[k]))}
    assert places == {f"{a}, line {n}" for n in (1, 2, 3)} | {f"{b}, line {n}" for n in (1, 2)}
    assert set(splits.as_dataset_dict()) == {"train", "validation", "test"}


def test_a_folder_with_one_file_per_split(tmp_path):
    put(tmp_path / "train.jsonl", rows(4))
    put(tmp_path / "dev.jsonl", rows(2))
    assert {k: len(s) for k, s in load_splits(str(tmp_path)).items()} == {"train": 4, "validation": 2}
    put(tmp_path / "train.x.jsonl", rows(1))
    assert "train.jsonl, train.x.jsonl could all be the train split. Name one: data.train." in message(
        str(tmp_path)
    )
    named = load_splits(str(tmp_path), train="train.jsonl", validation="dev.jsonl")
    assert {k: len(s) for k, s in named.items()} == {"train": 4, "validation": 2}


@pytest.mark.parametrize("by", ["hash", "seed"])
def test_held_out_rows_are_a_fixed_share(tmp_path, by):
    file = put(tmp_path / "a.jsonl", rows(100))
    options = {"validation_fraction": 0.1, "test_fraction": 0.2, "split_by": by}
    first = load_splits(train=file, **options)
    assert {k: len(s) for k, s in first.items()} == {"train": 70, "validation": 10, "test": 20}
    assert sorted(t for split in first.values() for t in texts(split)) == sorted(r["text"] for r in rows(100))
    again = load_splits(train=file, **options)
    assert all(texts(first[k]) == texts(again[k]) for k in first)
    other = load_splits(train=file, **options, split_seed=1)
    assert texts(first["test"]) != texts(other["test"])


def test_the_hash_split_does_not_depend_on_the_order(tmp_path):
    shuffled = rows(100)
    random.Random(0).shuffle(shuffled)
    one = load_splits(train=put(tmp_path / "a.jsonl", rows(100)))
    two = load_splits(train=put(tmp_path / "b.jsonl", shuffled))
    assert texts(one["validation"]) == texts(two["validation"])


def test_equal_rows_are_held_out_together(tmp_path):
    splits = load_splits(train=put(tmp_path / "a.jsonl", rows(10) * 5), validation_fraction=0.24)
    assert not set(texts(splits["train"])) & set(texts(splits["validation"]))


def test_too_few_rows_to_hold_out(tmp_path):
    assert "1 rows are too few to hold out validation" in message(train=put(tmp_path / "a.jsonl", rows(1)))
    assert len(load_splits(train=str(tmp_path / "a.jsonl"), validation_fraction=0)) == 1
    text = message(train=put(tmp_path / "b.jsonl", rows(9)), validation_fraction=0.5, test_fraction=0.5)
    assert "holding out 1 of train leaves nothing" in text


def test_limit_draws_from_the_whole_split(tmp_path):
    ordered = [{"text": str(i), "label": "ab"[i >= 50]} for i in range(100)]
    splits = load_splits(train=put(tmp_path / "a.jsonl", ordered), limit=20)
    assert len(splits["train"]) == 20
    assert set(splits["train"].rows["label"][:]) == {"a", "b"}


def test_columns_are_mapped(tmp_path):
    file = put(tmp_path / "a.jsonl", [{"sentence": "x", "text": "old", "y": 1}] * 3)
    splits = load_splits(train=file, columns={"text": "sentence", "label": "y"}, validation_fraction=0)
    assert splits["train"].rows[0] == {"text": "x", "label": 1}
    text = message(train=file, columns={"text": "sentense"})
    assert (
        "data.columns maps 'text' to 'sentense', but the train split has no such column. Did you mean 'sentence'?"
        in text
    )
    assert "Columns there: sentence, text, y." in text


def test_missing_columns_name_those_there(tmp_path):
    splits = load_splits(
        train=put(tmp_path / "a.jsonl", [{"texts": "x", "label": 1}] * 3), validation_fraction=0
    )
    with pytest.raises(DataError) as caught:
        splits.require("text", "label")
    assert "a.jsonl: the train split has no column 'text'. Did you mean 'texts'?" in str(caught.value)
    assert "Columns there: texts, label." in str(caught.value)


def test_the_column_proposed_is_none_that_has_its_use_already(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,mood\nyes,good\n")
    with pytest.raises(DataError, match=r"e\.g\. data\.columns: \{label: mood\}"):
        load_splits(train=str(path), validation_fraction=0).require("text", "label")


def test_missing_files_name_their_neighbours(tmp_path):
    put(tmp_path / "train.jsonl", rows(2))
    text = message(train=str(tmp_path / "trian.jsonl"))
    assert f"data.train: no file or folder 'trian.jsonl' in {tmp_path}. Near names: train.jsonl." in text
    assert f"'nowhere' in {tmp_path}. There: train.jsonl." in message(
        train=str(tmp_path / "nowhere" / "x.jsonl")
    )
    assert "data.name: no file or folder 'abc.npz'" in message(str(tmp_path / "abc.npz"))
    assert "data.name: no file or folder 'abc.csv'" in message("abc.csv")


def test_unclear_sources_are_told(tmp_path):
    (tmp_path / "a.dat").write_text("x\n")
    assert "a.dat: the ending does not tell the format. Say data.format; endings known: " in message(
        train=str(tmp_path / "a.dat")
    )
    assert load_splits(train=str(tmp_path / "a.dat"), format="text", validation_fraction=0)["train"].rows[
        0
    ] == {"text": "x"}
    assert "No data: give data.name" in message()
    assert "no train.* file and no class folders of images or sounds. There: a.dat." in message(str(tmp_path))
    file = put(tmp_path / "b.jsonl", rows(2))
    assert "is a file; then data.test has no meaning" in message(file, test=file)


def test_files_of_one_split_need_the_same_columns(tmp_path):
    a, b = put(tmp_path / "a.jsonl", [{"x": 1}]), put(tmp_path / "b.jsonl", [{"y": 1}])
    assert "b.jsonl has the columns y; " in message(train=[a, b])
    c = put(tmp_path / "c.jsonl", [{"x": "one"}])
    assert "columns differ in type between the files of the train split" in message(train=[a, c])


def test_what_an_ending_means_may_depend_on_the_task(tmp_path):
    (tmp_path / "a.tsv").write_text("Paris\tB-LOC\n\nshines\tO\n")
    read = load_splits(train=str(tmp_path / "a.tsv"), prefer={"tsv": "conll"}, validation_fraction=0)
    assert read["train"].rows["tokens"][:] == [["Paris"], ["shines"]]


def test_columns_that_a_task_reads_as_text_may_hold_numbers_and_be_absent(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(
        '{"q": "a", "answer": 18.0, "equation": "x"}\n{"q": "b", "answer": "12", "equation": "y"}\n'
    )
    two.write_text('{"q": "c", "answer": true, "note": "because", "extra": 1}\n')
    with pytest.raises(DataError, match=r"line 2: 'answer' is '12'"):
        load_splits(test=str(one))
    split = load_splits(test=[str(one), str(two)], columns={"ask": "q"}, texts=("ask", "answer", "note"))[
        "test"
    ]
    assert split.rows.to_dict() == {
        "ask": ["a", "b", "c"], "answer": ["18.0", "12", "true"], "note": [None, None, "because"],
    }  # fmt: skip
    assert split.where(2) == f"{two}, line 1"
