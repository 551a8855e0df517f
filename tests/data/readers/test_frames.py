"""Frames in the layout of deepfake benchmarks: labels, pairs and groups by their paths."""

from __future__ import annotations

import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.load import load_splits
from adaptome.data.readers.frames import related

PREFER = {"text": "frames", "folder": "frames"}


def frame(root, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5)).save(path)


@pytest.fixture
def data(tmp_path):
    frame(tmp_path, "FF/real/000/0.png", "FF/real/000/1.png", "FF/real/003/0.png", "FF/DF/000_003/0.png", "FF/DF/003_000/0.png", "CDF/Celeb-real/id0_0002/0.png", "CDF/synthesis/id0_id1_0002/0.png", "CDF/synthesis/id7_id8_0001/0.png")  # fmt: skip
    return tmp_path


def test_a_folder_is_read_by_its_layout(data):
    split = load_splits(train=str(data), prefer=PREFER, validation_fraction=0)["train"]
    rows = {row["video"]: row for row in split.rows.remove_columns("image")}
    assert len(split) == 8 and len(rows) == 7
    assert rows["FF/DF/000_003"] == {
        "label": "fake", "dataset": "FF", "source": "DF", "video": "FF/DF/000_003", "pair": "FF/000", "group": "FF/000",
    }  # fmt: skip
    assert {rows[v]["group"] for v in rows if v.startswith("FF")} == {"FF/000"}
    assert rows["CDF/Celeb-real/id0_0002"]["label"] == "real"
    assert rows["CDF/synthesis/id0_id1_0002"]["pair"] == "CDF/id0_0002"
    assert rows["CDF/synthesis/id7_id8_0001"]["pair"] == "", "its source is not there"


def test_videos_of_one_group_are_chained():
    videos = [("d", "real", n) for n in "abcx"] + [("d", "fake", "a_b"), ("d", "fake", "c_b")]
    _, groups = related(videos)
    assert len({groups[v] for v in videos if v[2] != "x"}) == 1 and groups["d", "real", "x"] == "d/x"


def test_lists_name_frames_or_folders(data):
    (data / "train.txt").write_text("FF/real/000\nFF/DF/000_003/0.png\n\n")
    (data / "test.txt").write_text("CDF\n")
    splits = load_splits(str(data), prefer=PREFER, validation_fraction=0)
    assert (len(splits["train"]), len(splits["test"])) == (3, 3)
    assert splits["train"].where(0).endswith("0.png")
    (data / "train.txt").write_text("FF/real/000/0.png\nFF/real/999/0.png\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: no file or folder 'FF/real/999/0.png'"):
        load_splits(str(data), prefer=PREFER)


def test_whole_groups_are_held_out(data):
    for name in range(10, 40):
        frame(
            data,
            f"FF/real/{name:03}/0.png",
            f"FF/real/{name:03}/1.png",
            f"FF/DF/{name:03}_{name + 100}/0.png",
        )
    for by in ("hash", "seed"):
        splits = load_splits(train=str(data / "FF"), prefer=PREFER, group="group", validation_fraction=0.3, split_by=by)  # fmt: skip
        train, held = (set(splits[name].rows["group"]) for name in ("train", "validation"))
        assert held and not train & held
        assert 0.15 < len(splits["validation"]) / 95 < 0.5
    with pytest.raises(DataError, match="Did you mean 'video'"):
        load_splits(train=str(data / "FF"), prefer=PREFER, group="vidoe")


def test_a_broken_picture_and_an_empty_folder_are_told(data, tmp_path):
    (data / "FF/real/000/0.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"0\.png is not an image"):
        load_splits(train=str(data), format="frames")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no frames"):
        load_splits(train=str(tmp_path / "empty"), format="frames")
