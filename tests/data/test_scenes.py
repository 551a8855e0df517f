"""Drawn scenes are read back by rule, and the scores of pictures count what was read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adaptome.data.makers import make
from adaptome.data.scenes.drawing import COLOURS, SHAPES, Scene, draw, drawn_at_random
from adaptome.data.scenes.reading import read
from adaptome.tasks.picture_scores import Asked, get_score

PARTS = ("shape", "colour", "spot", "background")


def test_what_was_drawn_is_read_through_noise():
    rng = np.random.default_rng(0)
    right = dict.fromkeys(PARTS, 0)
    for _ in range(200):
        scene = drawn_at_random(rng)
        noisy = np.clip(draw(scene) + rng.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
        seen = read(noisy)
        for part in PARTS:
            right[part] += getattr(seen, part) == getattr(scene, part)
    assert right["colour"] == right["spot"] == right["background"] == 200 and right["shape"] >= 197


def test_what_is_no_scene_has_no_object_or_no_shape():
    plain = np.full((16, 16, 3), COLOURS["blue"], np.uint8)
    assert read(plain).shape is None and read(plain).background == "blue"
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    assert read(noise).shape is None and read(noise).fit < 0.65


@pytest.mark.parametrize("side", [16, 32, 48])
def test_every_shape_at_every_size_of_picture(side):
    for shape in SHAPES:
        seen = read(draw(Scene(shape, "red", "yellow", "blue"), side))
        assert (seen.shape, seen.colour, seen.spot, seen.background) == (shape, "red", "yellow", "blue")


def test_a_subject_is_never_trained_on_the_backgrounds_that_are_asked_for():
    for seed in range(4):
        made = make("made:scene-subject", seed)
        train, test = made["train"].columns, made["test"].columns
        own = [read(image) for image, prior in zip(train["image"], train["prior"], strict=True) if not prior]
        look = {(one.shape, one.colour, one.spot) for one in own}
        assert len(own) == 5 and look == {(test["shape"][0], test["colour"][0], test["spot"][0])}
        asked = {b for b, about in zip(test["background"], test["about"], strict=True) if about == "subject"}
        assert len(asked) == 2 and not asked & {one.background for one in own}
        assert all(("sks" in text) == (about == "subject") for text, about in zip(test["text"], test["about"], strict=True))  # fmt: skip
    assert np.array_equal(make("made:scenes", 1)["train"].columns["image"], make("made:scenes", 1)["train"].columns["image"])  # fmt: skip


def test_the_score_counts_what_is_asked_for():
    rows = [
        ("circle", "red", "yellow", "blue", "subject"), ("circle", "red", "yellow", "green", "subject"),
        ("circle", "red", "yellow", "blue", "class"), ("circle", "red", "yellow", "green", "class"),
    ]  # fmt: skip
    columns = {name: [row[i] for row in rows] for i, name in enumerate((*PARTS, "about"))}
    shown = [
        Scene("circle", "red", "yellow", "blue"),  # right
        Scene("circle", "red", "yellow", "black"),  # the subject on another background
        Scene("circle", "red", "yellow", "blue"),  # the class, as the subject: a leak
        Scene("square", "white", "black", "green"),  # another shape
    ]
    score, asked = get_score("scenes"), Asked([""] * 4, columns)
    pictures = [Image.fromarray(draw(scene)) for scene in shown]
    found = score.score(pictures, asked)
    assert found == {"right": 0.5, "shape": 1.0, "colour": 1.0, "spot": 1.0, "background": 0.5, "subject": 1.0, "class_right": 0.5, "leak": 0.5}  # fmt: skip
    assert score.right(pictures, asked) == [True, False, True, False]
    untold = {**columns, "colour": [""] * 4, "spot": [""] * 4, "about": ["subject"] * 4}
    assert score.score(pictures, Asked([""] * 4, untold)).keys() == {"right", "shape", "background"}
