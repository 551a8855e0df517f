"""Faults of data that users report: files that are read wrongly in silence, chats in parts, examples that are too long."""

from __future__ import annotations

import json

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.tasks import get_task


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


# -- files


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2: "),
        ("a.jsonl", '{"text": "a", "meta": {"id": 1, "id": 2}}\n', "line 1: "),
        ("a.json", '[{"text": "b", "text": "c"}]', "a.json: "),
    ],
)
def test_a_json_object_with_a_key_twice_is_refused(name, text, place, tmp_path):
    with pytest.raises(DataError, match=rf"{place}an object has the key '(text|id)' twice") as raised:
        load_splits(train=written(tmp_path / name, text))
    assert "Rename or remove" in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-marked-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_byte_order_mark_tells_the_encoding(name, encoding, tmp_path):
    text = {"a.csv": "text\nnaïve ☕\n", "a.jsonl": '{"text": "naïve ☕"}\n', "a.txt": "naïve ☕\n"}[name]
    if encoding == "utf-16-marked-be":
        text, encoding = "\ufeff" + text, "utf-16-be"
    splits = load_splits(train=written(tmp_path / name, text, encoding), validation_fraction=0)
    assert splits["train"].rows["text"][:] == ["naïve ☕"]


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_without_a_mark_is_told_with_the_way_to_read_it(order, tmp_path):
    file = written(tmp_path / "a.csv", "text\nplain\n", f"utf-16-{order}")
    with pytest.raises(DataError, match=f"looks like UTF-16 .*\n.*data.encoding: utf-16-{order}"):
        load_splits(train=file)
    splits = load_splits(train=file, encoding=f"utf-16-{order}", validation_fraction=0)
    assert splits["train"].rows["text"][:] == ["plain"]


@pytest.mark.parametrize(("sign", "shown"), [(";", '";"'), ("\t", '"\\\\t"'), ("|", '"\\|"')])
def test_a_header_that_another_delimiter_parts_says_so(sign, shown, tmp_path):
    file = written(tmp_path / "a.csv", f"text{sign}label\na, b{sign}x\n")
    with pytest.raises(DataError, match=f"Are its fields parted by .*\n  Then data.delimiter: {shown}"):
        load_splits(train=file)
    assert load_splits(train=file, delimiter=sign, validation_fraction=0)["train"].rows[0] == {
        "text": "a, b", "label": "x",
    }  # fmt: skip


def test_one_column_with_a_semicolon_in_its_name_is_read_when_the_delimiter_is_given(tmp_path):
    file = written(tmp_path / "a.csv", "a;b\nx;y\n")
    splits = load_splits(train=file, delimiter=",", validation_fraction=0)
    assert splits["train"].rows["a;b"][:] == ["x;y"]


def test_rows_too_few_counts_those_that_repeat_others(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"text": "same"}\n' * 5)
    with pytest.raises(DataError, match="5 rows, of which 4 repeat others and stay with them, are too few"):
        load_splits(train=file)
    one = written(tmp_path / "b.jsonl", '{"text": "same"}\n')
    with pytest.raises(DataError, match="1 rows are too few"):
        load_splits(train=one)


# -- chats whose contents are in parts


def chat(*parts, answer="4"):
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]}


def said(text):
    return {"type": "text", "text": text}


def lines(path, rows):
    return written(path, "".join(json.dumps(row) + "\n" for row in rows))


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


class Tokenizer:
    """A chat template, and a token for every letter."""

    chat_template, eos_token = TEMPLATE, "$"

    def __call__(self, texts, add_special_tokens=True, **kwargs):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def apply_chat_template(self, messages, tokenize=False, **kwargs):
        import jinja2

        return jinja2.Template(TEMPLATE).render(messages=messages)


def prepared(file, **options):
    task = get_task("causal-lm", **options)
    splits = load_splits(train=file, chats=task.chats, validation_fraction=0)
    return task, task.prepare(splits, Tokenizer())


def test_text_parts_are_joined_and_rendered_as_text(tmp_path):
    rows = [chat(said("What is "), said("2 + 2?")), chat("Two", answer="2")]
    rows.append(
        {"messages": [{"role": "user", "content": "plain"}, {"role": "assistant", "content": [said("5")]}]}
    )
    task, made = prepared(lines(tmp_path / "a.jsonl", rows))
    told = [[m["content"] for m in chat] for chat in made["train"]["messages"]]
    assert told == [["What is 2 + 2?", "4"], ["Two", "2"], ["plain", "5"]]
    assert task._prompt(Tokenizer(), rows[0]["messages"]) == "<user>What is 2 + 2?\n<assistant>4\n"


def test_parts_of_prompt_and_completion_are_joined_too(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": [said("a"), said("b")]}], "completion": [{"role": "assistant", "content": "c"}]},
    ]  # fmt: skip
    _, made = prepared(lines(tmp_path / "a.jsonl", rows))
    assert made["train"]["prompt"][0][0]["content"] == "ab"


@pytest.mark.parametrize(
    "part",
    [{"type": "image", "url": "x.png"}, {"type": "input_audio", "data": "..."}, {"type": "image_url", "image_url": {"url": "x"}}],
)  # fmt: skip
def test_parts_that_are_no_text_are_refused_with_line_and_reason(part, tmp_path):
    file = lines(tmp_path / "a.jsonl", [chat("one"), chat(said("look"), part)])
    with pytest.raises(
        DataError,
        match=rf"a.jsonl, line 2: message 1, part 2 is of type '{part['type']}'; this task's models read text",
    ):
        prepared(file)


def test_a_part_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="line 1: message 1, part 1 has no text"):
        prepared(lines(tmp_path / "a.jsonl", [chat({"type": "text", "value": "x"})]))


def test_parts_of_a_hub_data_set_are_joined():
    import datasets
    import numpy as np

    from adaptome.data.chats import with_joined
    from adaptome.data.splits import Split, Table

    rows = datasets.Dataset.from_list([chat(said("a"), said("b"), answer=[said("c")])])
    split = Split(rows, [Table("hub", {}, range(1), unit="row")], np.zeros((1, 2), dtype=np.int64))
    made = with_joined(split, {"messages"})
    assert [m["content"] for m in made.rows["messages"][0]] == ["ab", "c"]


def test_content_that_is_no_text_never_reaches_the_template():
    from adaptome.tasks.causal_lm import _check_chat

    with pytest.raises(DataError, match="the content of message 1 is a list; expected text"):
        _check_chat("here", chat("x")["messages"])


# -- examples longer than the limit


def test_rows_that_are_cut_are_counted(tmp_path):
    rows = [{"prompt": "a" * 5, "completion": "b" * n} for n in (2, 10, 11, 30)]
    file = lines(tmp_path / "a.jsonl", rows)
    _, made = prepared(file, max_length=16)
    assert made.notes == ["2 of 4 examples of train exceed 16 tokens and were cut (task.max_length)."]
    _, made = prepared(file, max_length=16, packing=True, packing_strategy="wrapped")
    assert made.notes == []
    _, made = prepared(file, max_length=64)
    assert made.notes == []
    _, made = prepared(lines(tmp_path / "b.jsonl", [chat("a" * 40), chat("b")]), max_length=30)
    assert made.notes == ["1 of 2 examples of train exceed 30 tokens and were cut (task.max_length)."]
