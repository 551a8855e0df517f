"""CoNLL: sentences, tags brought into IOB2, and bad lines named."""

from __future__ import annotations

import gzip

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def read(tmp_path, text, **options):
    path = tmp_path / "a.conll.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return load_splits(train=str(path), validation_fraction=0, **options)


def message(tmp_path, text, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, **options)
    return str(caught.value)


def test_sentences_tags_and_lines(tmp_path):
    text = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n# sent_id = 2\nPeter NNP B-NP B-PER\n"
    split = read(tmp_path, text)["train"]
    assert split.rows["tokens"][:] == [["EU", "rejects"], ["Peter"]]
    assert split.rows["tags"][:] == [["B-ORG", "O"], ["B-PER"]]
    assert [split.where(i) for i in (0, 1)] == [f"{tmp_path}/a.conll.gz, line {n}" for n in (3, 8)]
    assert split.where(0, 1).endswith("line 4")


def test_tabs_part_fields_that_hold_spaces(tmp_path):
    split = read(tmp_path, "New York\tB-LOC\n#\tO\n")["train"]
    assert split.rows[0] == {"tokens": ["New York", "#"], "tags": ["B-LOC", "O"]}


@pytest.mark.parametrize(
    ("given", "iob2", "changed"),
    [
        ("I-P I-P O I-P", "B-P I-P O B-P", 2),  # IOB1
        ("I-P B-P I-P", "B-P B-P I-P", 1),  # IOB1: B- only between neighbours
        ("B-P I-Q", "B-P B-Q", 1),
        ("S-P O B-P I-P E-P", "B-P O B-P I-P I-P", 2),  # BIOES
        ("U-P B-P L-P", "B-P B-P I-P", 2),  # BILOU
        ("B-P I-P O", "B-P I-P O", 0),
    ],
)
def test_other_schemes_become_iob2_and_are_noted(tmp_path, given, iob2, changed):
    splits = read(tmp_path, "".join(f"w {tag}\n" for tag in given.split()))
    assert splits["train"].rows["tags"][0] == iob2.split()
    assert bool(splits.notes) == bool(changed)
    if changed:
        assert f"a.conll.gz: {changed} tags were brought into IOB2" in splits.notes[0]


def test_strict_refuses_what_convert_would_change(tmp_path):
    text = message(tmp_path, "a O\nb I-P\n", tags="strict")
    assert "a.conll.gz, line 2: 'I-P' after 'O' is not IOB2. data.tags: convert makes it 'B-P'." in text
    assert read(tmp_path, "a B-P\nb I-P\n", tags="strict")["train"].rows["tags"][0] == ["B-P", "I-P"]


def test_raw_takes_parts_of_speech(tmp_path):
    assert read(tmp_path, "a DET\nb NOUN\n", tags="raw")["train"].rows["tags"][0] == ["DET", "NOUN"]


def test_bad_lines_are_named(tmp_path):
    assert "line 2: 'NOUN' is not a tag; expected O, or B- or I-" in message(tmp_path, "a O\nb NOUN\n")
    assert "line 2: expected a token and a tag, found 'b'" in message(tmp_path, "a O\nb\n")
    assert "line 2: 3 fields, but the lines before have 2: 'b x O'" in message(tmp_path, "a O\nb x O\n")
    assert "line 2: the tag is empty" in message(tmp_path, "a\tO\nb\t\n")
    assert "the train split is empty" in message(tmp_path, "-DOCSTART- O\n\n")
