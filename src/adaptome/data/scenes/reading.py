"""Reading a scene back from a picture, by rule: no model takes part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from adaptome.data.scenes.drawing import COLOURS, SHAPES, inside

NAMES = tuple(COLOURS)
_TABLE = np.array(list(COLOURS.values()), float)


@dataclass(frozen=True)
class Read:
    """What a picture shows; shape, colour and spot are None where there is no object.

    Attributes:
        fit: how well the object fits its shape: their overlap over their union.
    """

    background: str
    shape: str | None = None
    colour: str | None = None
    spot: str | None = None
    fit: float = 0.0


def read(picture: np.ndarray, least: float = 0.05, fitting: float = 0.65) -> Read:
    """Background, shape and colours of a scene.

    Every pixel counts as the colour that is nearest to it. The background is the commonest colour on the picture's edge; the object is all
    that has another one; its spot is the commonest colour about its middle, and its colour the commonest one elsewhere in it. Its shape is the
    one that, laid over the object's bounds, overlaps it best.

    Args:
        picture: RGB bytes [height, width, 3].
        least: the share of the picture that an object covers at least.
        fitting: what a shape's overlap with the object is at least, over their union; below it the object has no shape.
    """
    labels = ((picture[..., None, :].astype(float) - _TABLE) ** 2).sum(-1).argmin(-1)
    edge = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    background = int(np.bincount(edge, minlength=len(NAMES)).argmax())
    mask = labels != background
    # where the edge is of many colours there is no background that an object could stand on
    if mask.mean() < least or (edge == background).mean() < 0.5:
        return Read(NAMES[background])
    shape, fit, middle, half = max(_fits(mask), key=lambda one: one[1])
    rows, columns = np.nonzero(mask)
    near = np.hypot(rows + 0.5 - middle[0], columns + 0.5 - middle[1]) <= 0.32 * half
    kinds = labels[rows, columns]
    spot = _commonest(kinds[near])
    colour = None if spot is None else _commonest(kinds[~near & (kinds != spot)])
    named = tuple(None if kind is None else NAMES[kind] for kind in (colour, spot))
    return Read(NAMES[background], shape if fit >= fitting else None, named[0], named[1], fit)


def _fits(mask: np.ndarray) -> Iterator[tuple[str, float, tuple[float, float], float]]:
    """Every shape, laid over an object at several places and sizes: its name, overlap over union, middle and half width."""
    rows, columns = (np.nonzero(mask.any(axis))[0] for axis in (1, 0))
    middle = [(side[0] + side[-1] + 1) / 2 for side in (rows, columns)]
    half = max(side[-1] + 1 - side[0] for side in (rows, columns)) / 2
    for shape in SHAPES:
        for down, right, less in product((-0.5, 0.0, 0.5, 1.0), (-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5, 1.0)):
            at, size = (middle[0] + down, middle[1] + right), max(half - less, 1.0)
            template = _template(shape, mask.shape, at, size)
            yield shape, float((mask & template).sum() / max((mask | template).sum(), 1)), at, size


def _commonest(kinds: np.ndarray) -> int | None:
    return int(np.bincount(kinds, minlength=len(NAMES)).argmax()) if len(kinds) else None


@lru_cache(maxsize=65536)
def _template(shape: str, size: tuple[int, int], middle: tuple[float, float], half: float) -> np.ndarray:
    """The pixels that a shape covers by half."""
    fine = 3
    rows, columns = ((np.arange(n * fine) + 0.5) / fine for n in size)
    u, v = np.broadcast_arrays((columns[None] - middle[1]) / half, (rows[:, None] - middle[0]) / half)
    return inside(shape, u, v).reshape(size[0], fine, size[1], fine).mean((1, 3)) >= 0.5
