"""What pictures can undergo as a whole: seven kinds that a small encoder learns to tell apart before it has seen a forgery.

None of them is what a forgery leaves: noise and sharpness are the cameras' own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from adaptome.data.faces.drawing import SIDE, Picture, X, Y

Change = Callable[[Picture, np.random.Generator], Picture]


def _coarse(picture: Picture, rng: np.random.Generator) -> Picture:
    small = picture.reshape(SIDE // 4, 4, SIDE // 4, 4, 3).mean((1, 3))
    return np.repeat(np.repeat(small, 4, 0), 4, 1)


def _stripes(picture: Picture, rng: np.random.Generator) -> Picture:
    angle, often, strong = rng.uniform(0, np.pi), rng.uniform(8, 25), rng.uniform(0.03, 0.1)
    return picture + strong * np.sin(often * (np.cos(angle) * X + np.sin(angle) * Y))[..., None]


def _few_tones(picture: Picture, rng: np.random.Generator) -> Picture:
    tones = rng.integers(3, 7)
    return np.round(picture * tones) / tones


def _contrast(picture: Picture, rng: np.random.Generator) -> Picture:
    return (picture - picture.mean()) * rng.choice([0.5, 1.6]) + picture.mean()


CHANGES: dict[str, Change] = {
    "none": lambda picture, rng: picture,
    "coarse": _coarse,
    "stripes": _stripes,
    "few tones": _few_tones,
    "contrast": _contrast,
    "cast": lambda picture, rng: picture * rng.normal(1, 0.2, 3),
    "shift": lambda picture, rng: np.roll(picture, rng.integers(2, 6), rng.integers(0, 2)),
}
