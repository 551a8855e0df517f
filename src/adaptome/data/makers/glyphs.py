"""Made-up signs: each class is a few strokes, and an example paints them moved, turned, stretched, thick or thin.

`glyphs-base` has 40 classes in black ink on paper, for a base to be trained on; `glyphs` has 20 others, for what is learned later, in ink of any
colour on a lighter ground of any, which goes from one shade to another and has a stroke of no sign somewhere. There means of pixels tell
little. Pictures of 16 x 16 in colour.
"""

from __future__ import annotations

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.splits import Table

SIDE, STROKES, POINTS = 16, 3, 10
CLASSES, BASE_CLASSES = 20, 40
#: where the pixels are, from -1 to 1 [16, 16, 2]
GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2), -1)


@maker("glyphs")
def glyphs(seed: int) -> dict[str, Table]:
    """120 train and 30 test images of each of 20 classes."""
    return _tables(seed, 1, CLASSES, 120, 30)


@maker("glyphs-base")
def glyphs_base(seed: int) -> dict[str, Table]:
    """200 train and 10 test images of each of 40 other classes."""
    return _tables(seed, 0, BASE_CLASSES, 200, 10)


def _tables(seed: int, family: int, classes: int, train: int, test: int) -> dict[str, Table]:
    shapes = [_strokes(np.random.default_rng([seed, family, c]), STROKES) for c in range(classes)]
    made = {}
    for number, (split, each) in enumerate((("train", train), ("test", test))):
        draw = np.random.default_rng([seed, family, classes, number])
        labels = draw.permutation(np.repeat(np.arange(classes), each))
        images = np.stack([_painted(shapes[label], draw, plain=not family) for label in labels])
        columns = {"image": images, "label": labels}
        names = {"label": [f"sign {c:02d}" for c in range(classes)]}
        made[split] = Table("made:glyphs", columns, range(len(labels)), "row", names)
    return made


def _strokes(draw: np.random.Generator, count: int) -> np.ndarray:
    """Points [count * points, 2] in a square around 0: quadratic curves through three random points each."""
    a, b, c = draw.uniform(-0.8, 0.8, (3, count, 1, 2))
    t = np.linspace(0, 1, POINTS)[None, :, None]
    curve: np.ndarray = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    return curve.reshape(-1, 2)


def _painted(points: np.ndarray, draw: np.random.Generator, plain: bool) -> np.ndarray:
    """One example [16, 16, 3] of uint8; plain: black on paper."""
    turn, (wide, high), move = draw.normal(0, 0.15), draw.uniform(0.75, 1.1, 2), draw.normal(0, 0.12, 2)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * [wide, high]
    placed = points @ turned.T + move + draw.normal(0, 0.02, points.shape)
    ground, ink = (np.full(3, 0.9), np.full(3, 0.1)) if plain else _colours(draw)
    picture = np.tile(ground, (SIDE, SIDE, 1))
    if not plain:
        picture = picture + (GRID @ draw.normal(0, 0.05, 2))[..., None]
        picture = _inked(picture, _strokes(draw, 1) * 0.3 + draw.uniform(-0.8, 0.8, 2), 0.5 * (ground + ink), draw)  # fmt: skip
    noisy = _inked(picture, placed, ink, draw) * 255 + draw.normal(0, 10, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _inked(picture: np.ndarray, points: np.ndarray, ink: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A brush of random thickness drawn along the points."""
    distance = np.linalg.norm(GRID[:, :, None] - points, axis=-1).min(-1)
    covered = np.exp(-((distance / draw.uniform(0.08, 0.13)) ** 2))[..., None]
    inked: np.ndarray = picture * (1 - covered) + ink * covered
    return inked


def _colours(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ground and ink [3] from 0 to 1, the ink darker by 0.3 or more in the mean."""
    while True:
        ground, ink = draw.uniform(0, 1, (2, 3))
        if ground.mean() - ink.mean() >= 0.3:
            return ground, ink
