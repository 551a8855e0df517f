"""Streams beside a clip's frames: masks, landmarks, words, from files; drawn faces have them all."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.faces.drawing import parts, person, points, pose
from adaptome.data.faces.expressions import MOTIONS, moving
from adaptome.data.faces.streams import (
    COLOURS,
    array_of,
    beside,
    described,
    dotted,
    landmarks_of,
    painted,
    parsing_of,
    read_descriptions,
)
from adaptome.data.geometry import Geometry
from adaptome.tasks.clips import Clipping


def test_masks_are_painted_and_sides_change_places_when_mirrored():
    mask = np.array([[1, 2], [3, 10]])
    assert (painted(mask) == COLOURS[mask]).all() and len({tuple(c) for c in COLOURS[:20]}) == 20
    assert (painted(mask[:, ::-1], mirrored=True) == COLOURS[np.array([[3, 1], [10, 2]])]).all()


def test_points_are_dots():
    canvas = dotted(np.array([[0.0, 0.0], [0.99, 0.5], [1.5, 0.5]]), 4)
    assert canvas[0, 0].all() and canvas[2, 3].all() and (canvas > 0).any(-1).sum() == 2
    assert (dotted(np.array([[0.5, 0.5]]), 224) > 0).any(-1).sum() == 25


def test_files_of_streams(tmp_path):
    masks = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    np.savez(tmp_path / "a.npz", masks=masks)
    (tmp_path / "b").mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "b" / f"{number}.png")
    for name in ("a", "b"):
        found = parsing_of(beside(tmp_path, f"train/{name}"), [0, 1, 5])
        assert [one.tolist() for one in found] == [masks[i].tolist() for i in (0, 1, 1)], "the last one stands for what lies behind"  # fmt: skip
    assert beside(tmp_path, "c") is None
    pixels = np.array([[[8.0, 4.0]], [[16.0, 8.0]]])
    (tmp_path / "c.json").write_text(json.dumps(pixels.tolist()))
    assert landmarks_of(beside(tmp_path, "c"), [1], (32, 16))[0].tolist() == [[0.5, 0.5]]
    with pytest.raises(DataError, match="points in pixels, and no frames"):
        landmarks_of(tmp_path / "c.json", [0], None)
    for name, content in (("d.npy", b"x"), ("d.json", b"[[1, 2]]")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} (cannot be read as numbers|holds an array \[1, 2\])"):
            array_of(tmp_path / name, 3)
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as numbers"):
        array_of(tmp_path / "evil.npy", 3)


def test_descriptions(tmp_path):
    for name, content in (
        ("a.json", '{"x": "one"}'),
        ("a.jsonl", '{"clip": "x", "text": "one"}\n'),
        ("a.csv", "clip,text\nx,one\n"),
    ):
        (tmp_path / name).write_text(content)
        texts = read_descriptions(tmp_path / name)
        assert described(texts, "train/x") == "one" and described(texts, "y") is None
    (tmp_path / "b.csv").write_text("clip,txt\nx,one\n")
    with pytest.raises(DataError, match=r"no 'text' in each row. Did you mean 'txt'"):
        read_descriptions(tmp_path / "b.csv")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as descriptions"):
        read_descriptions(tmp_path / "b.json")


def test_all_streams_of_a_clip_are_changed_alike(monkeypatch):
    from adaptome.data.faces.finding import FaceFinder
    from adaptome.tasks import clips

    monkeypatch.setattr(clips, "GEOMETRY", Geometry(mirror=True, degrees=30, scale=(1.0, 1.2)))
    spots = np.zeros((5, 16, 16, 3), np.uint8)
    spots[:, 2:6, 9:13] = 255
    clipping = Clipping(("frames", "parsing"), 4, 16, FaceFinder())
    for seed in range(6):
        seen = clipping.seen({"frames": spots, "parsing": spots[..., 0] // 255}, np.random.default_rng(seed), True)  # fmt: skip
        lit = seen["frames"].astype(float).mean((0, 3)) > seen["frames"].mean()
        coloured = seen["parsing"].astype(float).mean((0, 3)) > COLOURS[1].mean() / 2
        assert (lit != coloured).mean() < 0.06


def test_points_in_pixels_are_not_those_of_a_cropped_face(monkeypatch):
    from adaptome.data.faces.finding import FaceFinder

    found = {"frames": np.zeros((2, 20, 20, 3), np.uint8), "landmarks": np.full((2, 3, 2), 10.0)}
    clipping = Clipping(("frames", "landmarks"), 2, 16, FaceFinder())
    assert clipping.seen(found)["landmarks"][0, 8, 8].all()
    monkeypatch.setattr(FaceFinder, "looks", True)
    with pytest.raises(DataError, match="points in pixels, and no frames as they were"):
        clipping.seen(found)


def test_drawn_faces_have_parts_and_points_where_they_are_seen():
    rng = np.random.default_rng(0)
    for _ in range(5):
        who, how = person(rng), pose(rng)
        mask, places = parts(who, how), points(who, how)
        assert {1, 12, 17} <= set(np.unique(mask)) and places.shape == (27, 2)
        mouth = np.argwhere((mask == 12) | (mask == 11)).mean(0) / 32
        assert np.abs(places[15:23].mean(0)[::-1] - mouth).max() < 0.05


@pytest.mark.parametrize("pair", [("happiness", "disappointment"), ("surprise", "relief"), ("anger", "calm")])
def test_reverse_movements_have_the_same_frames(pair):
    first, second = (MOTIONS[kind] for kind in pair)
    assert {part: (b, a) for part, (a, b) in first.items()} == second
    (part, (start, end)), *_ = first.items()
    poses = moving(pair[0], 6, np.random.default_rng(0))
    values = [getattr(how, part) for how in poses]
    assert (np.diff(values) * (end - start) > 0).all()
