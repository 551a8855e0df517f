"""Data sets of relations and mentions in their authors' forms: places, labels, and what is told of faults."""

import json

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.data.makers import make
from adaptome.data.makers.relations import BASE, LATER, pairs
from adaptome.data.readers.knowledge import marked_words

WORDS = "Marie Curie was born in Warsaw .".split()


def rows_of(tmp_path, content, format, name="data.txt"):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    split = load_splits(train=str(file), format=format, validation_fraction=0)["train"]
    return split, [dict(row) for row in split.rows.with_format(None)]


RELATION = {"tokens": WORDS, "head": [[0, 2]], "tail": [[5, 6]]}


def test_fewrel(tmp_path):
    one = {"tokens": WORDS, "h": ["marie curie", "Q7186", [[0, 1]]], "t": ["warsaw", "Q270", [[5]]]}
    split, rows = rows_of(tmp_path, {"P19": [one], "P20": [one]}, "fewrel")
    assert rows == [RELATION | {"label": label} for label in ("P19", "P20")]
    assert split.where(1).endswith("data.txt, example 2")


def test_tacred_leaves_out_rows_without_a_relation(tmp_path):
    one = {"token": WORDS, "subj_start": 0, "subj_end": 1, "obj_start": 5, "obj_end": 5}
    given = [one | {"relation": "per:city_of_birth"}, one | {"relation": "no_relation"}]
    split, rows = rows_of(tmp_path, given, "tacred")
    assert rows == [RELATION | {"label": "per:city_of_birth"}]
    assert "1 examples of no_relation are left out" in split.tables[0].notes[0]


def test_tacred_in_lines(tmp_path):
    _, rows = rows_of(tmp_path, "3\t1 2 3\t<H> Marie Curie </H> was born in <T> Warsaw </T> .\n\n", "tacred")
    assert rows == [RELATION | {"label": "3"}]


def test_fewnerd_has_a_row_for_each_mention(tmp_path):
    types = ["person-scholar"] * 2 + ["O"] * 3 + ["location-GPE", "O"]
    lines = "\n".join(f"{w}\t{t}" for w, t in zip(WORDS, types, strict=True))
    split, rows = rows_of(tmp_path, f"{lines}\n\nA\tO\n\n{lines}\n", "fewnerd")
    assert [(r["mention"], r["label"]) for r in rows] == 2 * [
        ([[0, 2]], "person-scholar"),
        ([[5, 6]], "location-GPE"),
    ]
    assert rows[0]["tokens"] == WORDS and [split.where(n).rpartition(" ")[2] for n in range(4)] == [
        "1",
        "6",
        "11",
        "16",
    ]


def test_mentions_in_lines_and_in_json_with_the_finest_label(tmp_path):
    _, rows = rows_of(tmp_path, f"0\t2\t{' '.join(WORDS)}\tPERSON\n", "mentions")
    assert rows == [{"tokens": WORDS, "mention": [[0, 2]], "label": "PERSON"}]
    one = {
        "tokens": WORDS,
        "mentions": [{"start": 5, "end": 6, "labels": ["/location", "/location/city"]}],
    }
    _, rows = rows_of(tmp_path, json.dumps(one), "mentions")
    assert rows == [{"tokens": WORDS, "mention": [[5, 6]], "label": "/location/city"}]


def test_ace_counts_places_through_the_document(tmp_path):
    document = {
        "sentences": [["Yes", "."], WORDS],
        "relations": [[], [[2, 3, 7, 7, "GEN-AFF"]]],
    }
    _, rows = rows_of(tmp_path, json.dumps(document), "ace")
    assert rows == [RELATION | {"label": "GEN-AFF"}]


@pytest.mark.parametrize(
    "content, format, told",
    [
        ("{", "fewrel", "is no JSON"),
        ('{"P1": [{"tokens": ["a"]}]}', "fewrel", "example 1 .P1.: KeyError 'h'; expected"),
        ('{"P1": [{"tokens": ["a"], "h": ["a", "", [[0]]], "t": ["b", "", [[1]]]}]}', "fewrel", "tail is at words 1 to 2, and the sentence has 1"),
        ("1\tno sentence", "tacred", "line 1: ValueError"),
        ("1\t\t<H> a <T> b </T>", "tacred", "line 1: ValueError <H> is not closed"),
        ("word\ttype\tmore", "fewnerd", "line 1: expected a word and its type"),
        ("word\tO\n", "fewnerd", "holds no mention"),
        ("0\t9\ta b\tX", "mentions", "line 1: mention is at words 0 to 9"),
        ('{"sentences": [["a"]], "relations": []}', "ace", "line 1: ValueError"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_place(tmp_path, content, format, told):
    with pytest.raises(DataError, match=told):
        rows_of(tmp_path, content, format)


def test_marks_around_words():
    assert marked_words("<a>x y</a> z <a>x</a>", {"a": "name"}) == (
        ["x", "y", "z", "x"],
        {"name": [[0, 2], [3, 4]]},
    )
    with pytest.raises(ValueError, match="closes nothing"):
        marked_words("x</a>", {"a": "name"})


def test_made_relations_are_of_other_verbs_than_the_bases():
    base, later = pairs(0)
    assert len({*base, *later}) == BASE + LATER
    assert not {v for v, _ in later} & {v for v, _ in base}
    made = make("made:relations", 0)
    assert made["train"].columns == make("made:relations", 0)["train"].columns
    train = made["train"].columns
    assert len(train["label"]) == 15 * 60 and len(set(train["label"])) == 15
    for tokens, head, tail, label in zip(*(train[k] for k in ("tokens", "head", "tail", "label")), strict=True):  # fmt: skip
        between = tokens[head[0][1] : tail[0][0]]
        assert between[0].startswith(label.split()[0]) and between[-1] == label.split()[1]
