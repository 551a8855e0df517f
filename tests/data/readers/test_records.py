"""JSON lines, JSON, delimited tables, parquet and text: every bad line is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits

GOOD = [
    {"text": "ein Tag", "label": "a"},
    {"text": "zwei\u2028Tage", "label": "b"},
    {"text": "drei", "label": "a"},
]


def put(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, **options):
    return load_splits(train=str(path), validation_fraction=0, **options)["train"]


def message(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def as_jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonl.gz"])
def test_json_lines(tmp_path, ending):
    split = read(put(tmp_path / f"a{ending}", "\n" + as_jsonl(GOOD)))
    assert split.rows.to_list() == GOOD  # a line separator inside a text does not part it
    assert split.where(1) == f"{tmp_path}/a{ending}, line 3"


def test_json_lists_and_wrapped_lists(tmp_path):
    assert read(put(tmp_path / "a.json", json.dumps(GOOD))).rows.to_list() == GOOD
    assert read(put(tmp_path / "b.json", json.dumps({"v": 1, "data": GOOD}))).rows.to_list() == GOOD
    assert "One object per line? Then data.format: jsonl." in message(
        put(tmp_path / "c.json", as_jsonl(GOOD))
    )
    assert "expected a list of objects, found 3" in message(put(tmp_path / "d.json", "3"))
    assert "found an object with the keys a, b" in message(put(tmp_path / "e.json", '{"a": 1, "b": 2}'))
    assert 'e.json, item 2: expected an object such as {"text": ...}, found 5' in message(
        put(tmp_path / "e.json", '[{"text": "x"}, 5]')
    )


def test_bad_json_lines_are_named(tmp_path):
    text = message(put(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": "y"\n'))
    assert 'a.jsonl, line 2: not valid JSON (Expecting \',\' delimiter at column 13): {"text": "y"' in text
    assert "a.jsonl, line 1: expected an object" in message(put(tmp_path / "a.jsonl", "[1]\n"))


def test_values_of_mixed_types_are_named(tmp_path):
    rows = [{"label": "a"}, {"label": "b"}, {"label": None}, {"label": 3}, {"label": "c"}]
    text = message(put(tmp_path / "a.jsonl", as_jsonl(rows)))
    assert "a.jsonl, line 4: 'label' is 3 (int), unlike the rows before it, such as 'a' (str)." in text


def test_rows_without_a_value_are_named(tmp_path):
    splits = load_splits(
        train=str(put(tmp_path / "a.jsonl", '{"text": "x"}\n{"txt": "y"}\n')), validation_fraction=0
    )
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no value for 'text'"):
        splits.require("text")


def test_csv_and_tsv_keep_text_and_line_numbers(tmp_path):
    split = read(put(tmp_path / "a.csv", '\ufefftext,label\r\n"one\ntwo, three",007\r\nfour,5\r\n'))
    assert split.rows.to_list() == [
        {"text": "one\ntwo, three", "label": "007"},
        {"text": "four", "label": "5"},
    ]
    assert [split.where(i).rpartition(" ")[2] for i in (0, 1)] == ["2", "4"]
    assert read(put(tmp_path / "a.tsv", "text\tlabel\nx, y\t1\n")).rows[0] == {"text": "x, y", "label": "1"}
    assert read(put(tmp_path / "b.csv", "text;label\nx;1\n"), delimiter=";").rows[0] == {
        "text": "x",
        "label": "1",
    }


def test_long_csv_fields_are_read(tmp_path):
    long = "x" * 200_000
    assert read(put(tmp_path / "a.csv", f"text\n{long}\n")).rows[0]["text"] == long


def test_bad_csv_rows_are_named(tmp_path):
    text = message(put(tmp_path / "a.csv", "text,label\nx,1\ny,2,3\n"))
    assert "a.csv, line 3: 3 fields, but the header has 2 (text, label): y,2,3" in text
    assert "line 1: column 'a' stands twice in the header" in message(put(tmp_path / "a.csv", "a,a\n1,2\n"))
    assert "line 2: not a valid row" in message(put(tmp_path / "a.csv", 'a,b\n"x,1\ny,2\n'))
    assert "a header line with the columns' names is needed" in message(put(tmp_path / "a.csv", ""))
    assert "a delimiter is one character" in message(put(tmp_path / "a.csv", "a,b\n1,2\n"), delimiter="||")


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    split = read(tmp_path / "a.parquet")
    assert split.rows.to_list() == GOOD
    assert split.where(2).endswith("a.parquet, row 3")
    assert "a.parquet is not a whole parquet file" in message(put(tmp_path / "a.parquet", b"PAR1 torn"))


def test_text_lines(tmp_path):
    split = read(put(tmp_path / "a.txt", "one\n\n  \ntwo\n"))
    assert split.rows["text"][:] == ["one", "two"]
    assert split.where(1).endswith("a.txt, line 4")


def test_undecodable_bytes_name_the_line(tmp_path):
    path = put(tmp_path / "a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n')
    text = message(path)
    assert "a.jsonl, line 2: byte 0xe9 is not utf-8." in text
    assert "data.encoding: latin-1" in text
    assert read(path, encoding="latin-1").rows[1]["text"] == "café"
    assert "data.encoding='latin1x' is no encoding Python knows" in message(path, encoding="latin1x")


def test_other_encodings(tmp_path):
    assert (
        read(put(tmp_path / "a.jsonl", as_jsonl(GOOD).encode("utf-16")), encoding="utf-16").rows.to_list()
        == GOOD
    )


def test_damaged_gzip_is_named(tmp_path):
    whole = gzip.compress(as_jsonl(GOOD).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-10])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "x"}\n')
    for name in ("cut", "plain"):
        assert f"{name}.jsonl.gz is not a whole gzip file" in message(tmp_path / f"{name}.jsonl.gz")


def test_empty_files_name_the_split(tmp_path):
    assert "a.jsonl: the train split is empty." in message(put(tmp_path / "a.jsonl", "\n"))
    assert "a.csv: the train split is empty." in message(put(tmp_path / "a.csv", "text,label\n"))
