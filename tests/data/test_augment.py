"""What is changed in training frames: the same for the same numbers, another in another epoch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from adaptome.data.augment import AugmentedPictures, changed

ROWS = [{"image": Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)), "labels": i} for i in range(1, 4)]


def pixels(row: dict) -> np.ndarray:
    return np.asarray(row["image"])


def test_an_example_is_drawn_by_its_number_and_the_epoch():
    one, two = (AugmentedPictures(ROWS, "image", lambda p: p, seed=3) for _ in range(2))
    first = [pixels(one[i]) for i in (0, 1, 2)]
    two[2], two[0]
    assert all(np.array_equal(pixels(two[i]), p) for i, p in enumerate(first))
    two.set_epoch(1)
    assert not all(np.array_equal(pixels(two[i]), p) for i, p in enumerate(first))
    two.set_epoch(0)
    assert np.array_equal(pixels(two[1]), first[1])
    assert one[1]["labels"] == 2 and len(one) == 3 and ROWS[0]["image"].getpixel((0, 0)) == (40, 40, 40)


def test_what_is_drawn_stays_within_its_bounds():
    square = np.zeros((60, 60, 3), np.uint8)
    square[20:40, 20:40] = 200
    areas, middles = [], []
    for seed in range(60):
        made = np.asarray(changed(Image.fromarray(square), np.random.default_rng(seed)))
        assert made.shape == square.shape
        bright = np.argwhere(made[..., 0] > 100)
        areas.append(len(bright) / 400)
        middles.append(bright.mean(0) - 29.5)
    assert 0.7 < min(areas) and max(areas) < 1.35 and np.std(areas) > 0.03  # scales of 0.9 to 1.1
    assert 4 < np.abs(middles).max() <= 7.5  # moved by up to 6 of 60
