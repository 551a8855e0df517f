"""Image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits

Image = pytest.importorskip("PIL.Image")


def put(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def test_class_folders_are_split_and_named(tmp_path):
    for seed, kind in enumerate(("cat", "dog")):
        put(tmp_path / kind, 6, seed)
    splits = load_splits(str(tmp_path), validation_fraction=0.25)
    assert {k: len(s) for k, s in splits.items()} == {"train": 9, "validation": 3}
    assert set(splits["train"].rows["label"][:]) == {"cat", "dog"}
    assert splits["train"].rows[0]["image"].size == (7, 5)
    assert splits["train"].where(0).startswith(f"{tmp_path}/cat/")


def test_the_split_does_not_depend_on_where_the_folder_is(tmp_path):
    chosen = []
    for place in ("here", "there/deeper"):
        for seed, kind in enumerate(("cat", "dog")):
            put(tmp_path / place / kind, 10, seed)
        held = load_splits(str(tmp_path / place), validation_fraction=0.3)["validation"]
        chosen.append([str(Path(held.where(i)).relative_to(tmp_path / place)) for i in range(len(held))])
    assert chosen[0] == chosen[1]


def test_split_folders(tmp_path):
    for split in ("train", "val", "test"):
        put(tmp_path / split / "a", 2)
        put(tmp_path / split / "b", 1)
    splits = load_splits(str(tmp_path))
    assert {k: len(s) for k, s in splits.items()} == {"train": 3, "validation": 3, "test": 3}


def test_folders_given_split_by_split(tmp_path):
    for split in ("one", "two"):
        put(tmp_path / split / "a", 2)
    splits = load_splits(train=str(tmp_path / "one"), validation=str(tmp_path / "two"))
    assert {k: len(s) for k, s in splits.items()} == {"train": 2, "validation": 2}


def test_bad_images_and_empty_classes_are_named(tmp_path):
    put(tmp_path / "a", 2)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"b: no images\. Endings read: \.bmp"):
        load_splits(str(tmp_path))
    (tmp_path / "b" / "x.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"b/x\.jpg is not an image that can be read"):
        load_splits(str(tmp_path))
    with pytest.raises(DataError, match="no class folders; expected one subfolder"):
        load_splits(str(tmp_path / "a"), format="imagefolder")
