"""Made-up signs: each class is a few strokes, and an example draws them moved, turned, stretched, thick or thin, with noise.

`glyphs-base` has 20 classes, for a base to be trained on; `glyphs` has 20 others, for what is learned later. Grey images of 16 x 16.
"""

from __future__ import annotations

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.splits import Table

SIDE, CLASSES, STROKES, POINTS = 16, 20, 3, 8


@maker("glyphs")
def glyphs(seed: int) -> dict[str, Table]:
    """60 train and 30 test images of each of 20 classes."""
    return _tables(seed, 1, 60, 30)


@maker("glyphs-base")
def glyphs_base(seed: int) -> dict[str, Table]:
    """100 train and 20 test images of each of 20 other classes."""
    return _tables(seed, 0, 100, 20)


def _tables(seed: int, family: int, train: int, test: int) -> dict[str, Table]:
    shapes = [_strokes(np.random.default_rng([seed, family, c])) for c in range(CLASSES)]
    made = {}
    for number, (split, each) in enumerate((("train", train), ("test", test))):
        draw = np.random.default_rng([seed, family, CLASSES, number])
        labels = draw.permutation(np.repeat(np.arange(CLASSES), each))
        images = np.stack([_drawn(shapes[label], draw) for label in labels])
        columns = {"image": images, "label": labels}
        names = {"label": [f"sign {c:02d}" for c in range(CLASSES)]}
        made[split] = Table("made:glyphs", columns, range(len(labels)), "row", names)
    return made


def _strokes(draw: np.random.Generator) -> np.ndarray:
    """Points [strokes * points, 2] in a square around 0: quadratic curves through three random points each."""
    a, b, c = draw.uniform(-0.8, 0.8, (3, STROKES, 1, 2))
    t = np.linspace(0, 1, POINTS)[None, :, None]
    curve: np.ndarray = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    return curve.reshape(-1, 2)


def _drawn(points: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One example [16, 16] of uint8."""
    turn, (wide, high), move = draw.normal(0, 0.12), draw.uniform(0.8, 1.1, 2), draw.normal(0, 0.08, 2)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * [wide, high]
    placed = points @ turned.T + move + draw.normal(0, 0.02, points.shape)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2), -1)
    distance = np.linalg.norm(grid[:, :, None] - placed, axis=-1).min(-1)
    ink = np.exp(-((distance / draw.uniform(0.08, 0.13)) ** 2)) * 220 + draw.normal(0, 12, (SIDE, SIDE))
    return ink.clip(0, 255).astype(np.uint8)
