"""Geometric changes that are drawn once and made of several pictures alike: the two of a pair, a picture and its masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Geometry:
    """How much of what is drawn; all off by default.

    Args:
        mirror: mirrored left to right by half.
        dihedral: one of the eight symmetries of the square (a mirroring and quarter turns), for pictures from above.
        degrees: turned by up to so much, by `chance`.
        scale: (smallest, largest) factor, by `chance`.
        distortion: a grid of 5 by 5 cells is moved by up to this share of a cell, by `chance`.
        chance: of each of these.
    """

    mirror: bool = False
    dihedral: bool = False
    degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    distortion: float = 0.0
    chance: float = 0.5

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Drawn:
        """One change of pictures of this size."""
        turns = int(rng.integers(4)) if self.dihedral else 0
        flipped = bool(rng.random() < 0.5) if self.dihedral or self.mirror else False
        angle = rng.uniform(-self.degrees, self.degrees) if self._happens(rng, self.degrees > 0) else 0.0
        factor = rng.uniform(*self.scale) if self._happens(rng, self.scale != (1.0, 1.0)) else 1.0
        cells = None
        if self._happens(rng, self.distortion > 0):
            cells = rng.uniform(-self.distortion, self.distortion, (2, CELLS + 1, CELLS + 1))
        if turns % 2:
            height, width = width, height
        return Drawn(turns, flipped, angle, factor, cells, height, width)

    def _happens(self, rng: np.random.Generator, possible: bool) -> bool:
        return bool(rng.random() < self.chance) and possible


CELLS = 5


@dataclass(frozen=True)
class Drawn:
    """A change: quarter turns, then mirroring, then a turn by `angle` degrees about the middle, scaling and distortion.

    height, width: of its result.
    """

    turns: int
    flipped: bool
    angle: float
    factor: float
    cells: np.ndarray | None
    height: int
    width: int

    @property
    def bent(self) -> bool:
        """Whether pixels are mixed; else they are only put elsewhere."""
        return self.angle != 0 or self.factor != 1 or self.cells is not None

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """Of a picture [h, w, bands] of uint8: mixed linearly, what lies outside mirrored at the edge."""
        moved = self._moved(pixels)
        if not self.bent:
            return moved
        return self._sampled(moved.astype(np.float32), "bilinear", "reflection").round().clip(0, 255).astype(np.uint8)  # fmt: skip

    def numbers(self, values: np.ndarray, outside: float) -> np.ndarray:
        """Of class numbers or measures [h, w] or [h, w, n], never mixed; what lies outside the picture is `outside`."""
        moved = self._moved(values)
        if not self.bent:
            return moved
        stacked = moved[..., None] if moved.ndim == 2 else moved
        found = self._sampled(stacked.astype(np.float32), "nearest", "zeros")
        inside = self._sampled(np.ones((*moved.shape[:2], 1), np.float32), "nearest", "zeros") > 0.5
        found = np.where(inside, found, np.float32(outside)).astype(values.dtype)
        return found[..., 0] if moved.ndim == 2 else found

    def vectors(self, directions: np.ndarray) -> np.ndarray:
        """Of directions [..., 3] (right, down, towards the viewer) already put in place: turned as the picture is.

        A distortion is small, and leaves them.
        """
        x, y, z = (directions[..., i] for i in range(3))
        for _ in range(self.turns):
            x, y = y, -x
        if self.flipped:
            x = -x
        angle = np.radians(self.angle)
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([c * x - s * y, s * x + c * y, z], -1).astype(directions.dtype)

    def _moved(self, values: np.ndarray) -> np.ndarray:
        moved = np.rot90(values, self.turns)
        return np.ascontiguousarray(moved[:, ::-1] if self.flipped else moved)

    def _sampled(self, values: np.ndarray, how: str, outside: str) -> np.ndarray:
        stacked = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)[None]
        made = F.grid_sample(stacked, self._grid()[None], how, outside, align_corners=False)
        return made[0].permute(1, 2, 0).numpy()

    def _grid(self) -> Tensor:
        """Where each pixel of the result comes from [h, w, 2], -1 to 1: the inverse map."""
        y, x = torch.meshgrid(*(_centres(n) for n in (self.height, self.width)), indexing="ij")
        if self.cells is not None:
            shifts = torch.from_numpy(self.cells).float()[None] * 2 / CELLS
            shifts = F.interpolate(shifts, (self.height, self.width), mode="bilinear", align_corners=True)[0]
            x, y = x + shifts[0], y + shifts[1]
        angle, ratio = np.radians(self.angle), self.height / self.width
        c, s = np.cos(angle) / self.factor, np.sin(angle) / self.factor
        # in pixels, so that a turn stays one where the picture is no square
        return torch.stack([c * x + s * y * ratio, -s * x / ratio + c * y], -1)


def _centres(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count * 2 - 1


def cropped(rng: np.random.Generator, height: int, width: int, size: int) -> tuple[slice, slice]:
    """A window of at most `size` pixels on a side, drawn at random."""
    top, left = (int(rng.integers(max(n - size, 0) + 1)) for n in (height, width))
    return slice(top, top + min(size, height)), slice(left, left + min(size, width))
