"""Lists and folders of clips."""

from __future__ import annotations

import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.load import load_splits
from adaptome.data.readers import ReadOptions
from adaptome.data.readers.clips import read_clips


def test_a_list(tmp_path):
    (tmp_path / "clips" / "a b").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    list_ = tmp_path / "lists" / "DFEW_set_3_test.txt"
    list_.write_text("clips/a b 16 3\n\nclips/gone.mp4 7 1\n")
    table = read_clips(list_, ReadOptions())
    assert table.columns["video"] == [str(tmp_path / "clips" / "a b"), str(tmp_path / "lists" / "clips" / "gone.mp4")]  # fmt: skip
    assert table.columns["label"] == [3, 1] and table.columns["clip"] == ["clips/a b", "clips/gone"]
    assert table.columns["fold"] == ["3", "3"] and table.place(1).endswith("test.txt, line 3")
    list_.write_text("x.mp4,happiness\ny.mp4 5 2\n")
    assert read_clips(list_, ReadOptions()).columns["label"] == ["happiness", "2"]


def test_folds_of_lists(tmp_path):
    for fold in (1, 2, 3):
        (tmp_path / f"set_{fold}.txt").write_text("".join(f"{fold}-{n} 4 {n}\n" for n in range(3)))
    lists = [str(tmp_path / f"set_{n}.txt") for n in (1, 2, 3)]
    folds = {"column": "fold", "test": "2", "validation": None}
    splits = load_splits(train=lists, format="clips", folds=folds, validation_fraction=0, files="video")
    assert len(splits["train"]) == 6 and set(splits["test"].rows["clip"]) == {"2-0", "2-1", "2-2"}


def test_a_folder_of_classes(tmp_path):
    for label in ("anger", "fear"):
        (tmp_path / label / "one").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / label / "one" / "0.png")
    (tmp_path / "fear" / "two.mp4").write_bytes(b"")
    (tmp_path / "fear" / "notes").mkdir()
    table = read_clips(tmp_path, ReadOptions())
    assert table.columns["label"] == ["anger", "fear", "fear"]
    assert table.columns["clip"] == ["anger/one", "fear/one", "fear/two"]


def test_what_is_no_list_is_told(tmp_path):
    (tmp_path / "list.txt").write_text("alone\n")
    with pytest.raises(DataError, match="list.txt, line 1: 'alone' is no clip with its label"):
        read_clips(tmp_path / "list.txt", ReadOptions())
    with pytest.raises(DataError, match="no clips. Expected class/clip.mp4"):
        (tmp_path / "empty").mkdir()
        read_clips(tmp_path / "empty", ReadOptions())
