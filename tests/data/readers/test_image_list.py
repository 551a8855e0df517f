"""Lists of pictures with their class."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def test_a_list_of_vtab_gives_files_and_classes_and_tells_what_is_wrong(tmp_path):
    (tmp_path / "images" / "my train").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(
            tmp_path / "images" / "my train" / f"{number}.png"
        )
    lines = [f"images/my train/{number}.png {number % 2}" for number in range(3)]
    (tmp_path / "train800val200.txt").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "test.txt").write_text(lines[1])
    found = load_splits(train=str(tmp_path / "train800val200.txt"), test=str(tmp_path / "test.txt"), format="image-list", validation_fraction=0)  # fmt: skip
    assert (
        found["train"].rows["label"] == ["0", "1", "0"]
        and np.asarray(found["test"].rows[0]["image"]).max() == 1
    )
    for text, said in (
        ("images/0.png", "line 1: .*has no class"),
        ("images/9.png 1", "line 1: no file"),
        ("\n", "is empty"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(DataError, match=said):
            load_splits(train=str(tmp_path / "bad.txt"), format="image-list")
    (tmp_path / "images" / "x.png").write_bytes(b"no picture")
    (tmp_path / "bad.txt").write_text("images/x.png 1")
    with pytest.raises(DataError, match="cannot|not an image|can be read"):
        load_splits(train=str(tmp_path / "bad.txt"), format="image-list")
