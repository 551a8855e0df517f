"""Frames of videos, and the extraction of faces from a data set of them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.faces.extract import main
from adaptome.data.load import load_splits
from adaptome.data.video import frames, segments, spread, taken

av = pytest.importorskip("av")


def film(path, count: int = 12, side: int = 64) -> None:
    """A video whose frames get brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            array = np.full((side, side, 3), 20 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_frames_are_spread_from_the_middle():
    assert spread(9, 3) == [4, 0, 8] and spread(9, 5)[3:] == [2, 6]
    assert sorted(spread(5, 99)) == list(range(5)) and spread(0, 3) == []
    chosen = sorted(spread(1000, 32))
    assert max(np.diff(chosen)) <= 63, "no gap is more than twice an even one"


def test_segments():
    assert (
        segments(4, 8) == [0, 1, 2, 3, 3, 3, 3, 3]
        and segments(8, 8) == list(range(8))
        and segments(0, 3) == []
    )
    assert segments(32, 8) == [2, 6, 10, 14, 18, 22, 26, 30] and segments(17, 16)[0] == 0
    for total in (17, 33, 100):
        drawn = {tuple(segments(total, 16, np.random.default_rng(seed))) for seed in range(20)}
        assert len(drawn) > 1
        for numbers in drawn:
            edges = np.arange(17) * total / 16
            assert all(np.floor(a) <= n < b for n, a, b in zip(numbers, edges, edges[1:], strict=False))
            assert list(numbers) == sorted(numbers)


def test_frames_are_given_as_often_as_they_are_chosen(tmp_path):
    film(tmp_path / "clip.mp4", 3)
    found = taken(tmp_path / "clip.mp4", lambda total: segments(total, 5))
    assert [number for number, _ in found] == [0, 1, 2, 2, 2]


def test_the_frames_of_a_video_are_those_asked_for(tmp_path):
    film(tmp_path / "clip.mp4")
    found = frames(tmp_path / "clip.mp4", 3)
    assert [number for number, _ in found] == spread(12, 3)
    for number, picture in found:
        assert picture.mode == "RGB" and abs(np.asarray(picture).mean() - 20 * number) < 8


def test_a_folder_and_a_picture(tmp_path):
    for number in range(4):
        Image.new("RGB", (5, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert [np.asarray(p)[0, 0, 0] for _, p in frames(tmp_path, 2)] == [2, 0]
    assert len(frames(tmp_path / "1.png", 8)) == 1


def test_what_is_no_video_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"broken\.mp4 cannot be read as a video"):
        frames(tmp_path / "broken.mp4", 3)
    with pytest.raises(DataError, match="no such file"):
        frames(tmp_path / "none.mp4", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        frames(tmp_path / "empty", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"adaptome\[video\]"):
        frames(tmp_path / "broken.mp4", 3)


def test_a_data_sets_faces_are_cropped_once_and_read_as_frames(tmp_path, capsys):
    for source, name in (("real", "000"), ("real", "001"), ("DF", "000_001"), ("DF", "dark")):
        film(tmp_path / "videos" / "FF" / source / f"{name}.mp4")
    boxes = [
        {"file": f"videos/FF/{source}/{name}.mp4", "frame": number, "box": [8, 8, 40, 40]}
        for source, name in (("real", "000"), ("real", "001"), ("DF", "000_001"))
        for number in (0, 3, 6, 9)
    ]
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in boxes))
    told = [str(tmp_path / "videos" / "FF"), str(tmp_path / "data"), "--boxes", str(tmp_path / "boxes.jsonl"), "--frames", "2"]  # fmt: skip
    assert main(told) == 0
    out = capsys.readouterr()
    assert "dark.mp4: no face was found" in out.err and out.out.strip().endswith("FF.txt")
    split = load_splits(train=str(tmp_path / "data" / "FF.txt"), format="frames", validation_fraction=0)[
        "train"
    ]
    assert len(split) == 6 and np.asarray(split.rows[0]["image"]).shape == (42, 42, 3)
    assert set(split.rows["pair"]) == {"FF/000", "FF/001"} and set(split.rows["group"]) == {"FF/000"}
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "data").rglob("*.png")}
    assert main(told) == 0, "goes on"
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "data").rglob("*.png")}
    assert main([str(tmp_path / "data"), str(tmp_path / "out")]) == 1
    assert "no videos" in capsys.readouterr().err
