"""Pairs of pictures in the layouts of change detection's data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.load import load_splits
from adaptome.data.readers import ReadOptions
from adaptome.data.readers.change_pairs import has_pairs, pairs_of, read_change_pairs

PREFER = {"text": "change-pairs", "folder": "change-pairs"}


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def folders(root: Path, names=("A", "B", "label"), stems=("one", "two"), ending="png") -> Path:
    for number, name in enumerate(names):
        for stem in stems:
            save(root / name / f"{stem}.{ending if number < 2 else 'png'}", number)
    return root


@pytest.mark.parametrize("names", [("A", "B", "label"), ("t1", "t2", "mask"), ("time1", "time2", "label")])
def test_a_folder_for_each_split(tmp_path, names):
    for split in ("train", "val", "test"):
        folders(tmp_path / split, names, ("one", "sub/two") if split == "train" else ("one",), "jpg")
    splits = load_splits(str(tmp_path), prefer=PREFER)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "validation": 1, "test": 1}
    row = splits["train"].rows[1]
    assert row == {key: str(tmp_path / "train" / name / f"sub/two.{end}") for key, name, end in zip(("before", "after", "mask"), names, ("jpg", "jpg", "png"), strict=True)}  # fmt: skip


def test_lists_of_names_beside_the_folders(tmp_path):
    folders(tmp_path)
    (tmp_path / "list").mkdir()
    for split, stem in (("train", "one.png"), ("val", "two.png")):
        (tmp_path / "list" / f"{split}.txt").write_text(f"{stem}\n\n")
    splits = load_splits(
        train=f"{tmp_path}/list/train.txt", validation=f"{tmp_path}/list/val.txt", prefer=PREFER
    )
    assert splits["train"].rows["mask"] == [str(tmp_path / "label" / "one.png")]
    assert splits["validation"].rows["after"] == [str(tmp_path / "B" / "two.png")]


def test_lists_of_three_paths_with_two_spaces_between(tmp_path):
    folders(tmp_path / "my set")
    (tmp_path / "train.txt").write_text("my set/A/one.png  my set/B/one.png  my set/label/one.png\n")
    table = read_change_pairs(tmp_path / "train.txt", ReadOptions())
    assert table.columns["before"] == [str(tmp_path / "my set/A/one.png")] and len(table.lines) == 1


def test_what_is_missing_or_torn_is_told_by_name(tmp_path):
    root = folders(tmp_path / "x")
    assert has_pairs(root) and [a.stem for a, _, _ in pairs_of(root)] == ["one", "two"]
    (root / "label" / "two.png").unlink()
    with pytest.raises(DataError, match=r"A/two.png has no counterpart in .*label"):
        read_change_pairs(root, ReadOptions())
    save(root / "label" / "two.png")
    save(root / "B" / "three.png")
    with pytest.raises(DataError, match=r"B/three.png has no counterpart in .*A"):
        read_change_pairs(root, ReadOptions())
    (root / "B" / "three.png").unlink()
    (root / "B" / "one.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"B/one.png is not an image"):
        read_change_pairs(root, ReadOptions())
    with pytest.raises(DataError, match=r"no folder called A, t1.*There: one.png, two.png"):
        read_change_pairs(root / "label", ReadOptions())


@pytest.mark.parametrize(
    "line,said",
    [
        ("a.png  b.png", "line 1: expected three paths .* found 2"),
        ("A/one.png  B/none.png  label/one.png", "line 1: no file 'B/none.png'"),
        ("four.png", "line 1: no mask for 'four.png'"),
    ],
)
def test_a_line_that_is_wrong_is_told_by_its_number(tmp_path, line, said):
    folders(tmp_path)
    (tmp_path / "train.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        read_change_pairs(tmp_path / "train.txt", ReadOptions())
