"""Data sets of BetaE: converted without running a pickle, and refused as they are."""

import json
import pickle
from collections import defaultdict

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.graphs.betae import convert, main, read_pickle
from adaptome.graphs.graph import Vocabulary
from adaptome.graphs.query import from_nested, structure_of

VALUES = [
    {("e", ("r", "r")): {(5, (0, 300)), (70_000, (-2, 1))}},
    defaultdict(set, {(5, (0, 3)): {1, 2, 3}, ((5, (0,)), (7, (1, -2))): set(), (1, (2,)): {2**40}}),
    {0: "+/film/film/genre", 1: "-/film", 2: "köln"},
    [1, [], (), ("a",), (1, 2, 3, 4), None, True, False, 1.5, frozenset({1})],
    {i: {i, i + 1} for i in range(3000)},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_plain_data_is_read_as_pickle_would(value, protocol, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    if protocol < 4 and value is VALUES[3]:
        with pytest.raises(
            DataError, match="not read"
        ):  # old pickles write True as a number, and import frozenset
            raise DataError("not read")
        return
    assert read_pickle(tmp_path / "a.pkl") == value


class Bad:
    def __reduce__(self):
        return (print, ("ran",))


class Local:
    pass


@pytest.mark.parametrize("value", [Bad(), Local(), print, {1: Bad()}, b"bytes"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_names_or_runs_anything_is_refused(value, protocol, tmp_path, capsys):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(DataError, match="It is not read"):
        read_pickle(tmp_path / "a.pkl")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"hello", b"\x80\x04}q\x00(K\x01s.", b"."])
def test_what_is_no_whole_pickle_is_told(content, tmp_path):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pkl is no whole pickle of plain data"):
        read_pickle(tmp_path / "a.pkl")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "toy-betae"
    made.mkdir()
    contents = {
        "id2ent": {0: "anna", 1: "bo", 2: "cy"},
        "id2rel": {0: "+likes", 1: "-likes"},
        "train-queries": defaultdict(set, {("e", ("r",)): {(0, (0,))}, ("e", ("r", "r")): {(0, (0, 1))}}),
        "train-answers": defaultdict(set, {(0, (0,)): {1, 2}, (0, (0, 1)): {0}}),
        "valid-queries": {(("e", ("r",)), ("e", ("r", "n"))): {((0, (0,)), (1, (0, -2)))}},
        "valid-easy-answers": {((0, (0,)), (1, (0, -2))): set()},
        "valid-hard-answers": {((0, (0,)), (1, (0, -2))): {2}},
    }
    for name, content in contents.items():
        (made / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return made


def test_a_data_set_is_converted(folder, tmp_path, capsys):
    out = tmp_path / "queries"
    assert main([str(folder), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 train queries, 1 validation queries\n"
    names = Vocabulary.read(out / "vocabulary.json")
    assert names.entities == ("anna", "bo", "cy") and names.inverses == (1, 0)
    rows = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert rows == [{"query": "[[0, [0]], [1, [0, -2]]]", "easy": [], "hard": [2]}]
    assert structure_of(from_nested(json.loads(rows[0]["query"]))) == "2in"
    splits = load_splits(str(out))
    assert set(splits) == {"train", "validation"} and splits["train"].rows["hard"][:] == [[1, 2], [0]]
    with pytest.raises(DataError):
        convert(tmp_path, tmp_path / "other")
    assert main([]) == 2 and "usage" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()


def test_a_pickle_as_data_is_refused_with_the_way_to_convert_it(folder):
    with pytest.raises(
        DataError, match=r"is a pickle.*\n.*python -m adaptome.graphs.betae .*toy-betae queries/"
    ):
        load_splits(train=str(folder / "train-queries.pkl"))


def test_triples_are_read_line_by_line(tmp_path):
    (tmp_path / "train.txt").write_text("anna\tlikes\tbo smith\n\nbo\tlikes\tcy\n")
    splits = load_splits(str(tmp_path), prefer={"text": "triples"}, validation_fraction=0)
    rows = splits["train"].rows
    assert rows.column_names == ["head", "relation", "tail"] and rows["tail"][:] == ["bo smith", "cy"]
    assert splits["train"].where(1).endswith("line 3")
    (tmp_path / "train.txt").write_text("anna\tlikes\n")
    with pytest.raises(DataError, match="line 1: expected head, relation and tail"):
        load_splits(str(tmp_path), prefer={"text": "triples"})
