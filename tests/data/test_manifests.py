"""Tables that name sound files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.data.sound import Sounds
from tests.sounds import esc50, urbansound8k


def paths(splits, name="train"):
    return [sound["path"] for sound in Sounds(splits[name].rows)]


def test_a_pattern_of_columns_makes_the_paths(tmp_path):
    for file, pattern in (
        (esc50(tmp_path / "esc"), "../audio/{filename}"),
        (urbansound8k(tmp_path / "us8k"), "../audio/fold{fold}/{slice_file_name}"),
    ):
        splits = load_splits(train=file, files="audio", paths=pattern, validation_fraction=0)
        found = paths(splits)
        assert len(found) == len(splits["train"])
        assert all(Path(path).read_bytes()[:4] == b"RIFF" for path in found)


def test_a_column_of_paths_is_relative_to_its_table(tmp_path, monkeypatch):
    esc50(tmp_path / "esc")
    rows = [
        {"audio": "audio/1-0-A-0.wav", "label": "down"},
        {"audio": str(tmp_path / "x.wav"), "label": "up"},
    ]
    (tmp_path / "esc" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    found = paths(load_splits(train="esc/train.jsonl", files="audio", validation_fraction=0))
    assert found == ["esc/audio/1-0-A-0.wav", str(tmp_path / "x.wav")]
    mapped = load_splits(
        train="esc/train.jsonl", files="audio", columns={"audio": "audio"}, validation_fraction=0
    )
    assert paths(mapped) == found


def test_what_is_held_out_does_not_depend_on_the_place(tmp_path):
    esc50(tmp_path / "a", each=4)
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    held = []
    for folder in ("a", "b/c"):
        splits = load_splits(
            train=str(tmp_path / folder / "meta" / "esc50.csv"), files="audio", paths="../audio/{filename}"
        )
        held.append(splits["validation"].rows["filename"][:])
    assert held[0] == held[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"paths": "../audio/{filenam}"},
            "names 'filenam', but there is no such column. Did you mean 'filename'",
        ),
        ({"paths": "../audio/{filename"}, "not a pattern"),
        ({"paths": "{filename}", "columns": {"audio": "filename"}}, "maps it to 'filename'. Give one"),
        ({"paths": "{filename}", "files": None}, "data.paths: the task reads no files"),
    ],
)
def test_patterns_that_do_not_fit_are_told(tmp_path, settings, told):
    with pytest.raises(DataError, match=told):
        load_splits(train=esc50(tmp_path), **{"files": "audio", **settings})
