"""Views of a picture for learning without labels: crops of two sizes, changed in colour, and which patches of them are hidden.

Pictures are [C, H, W] of float, 0 to 1 where they are photographs. Everything drawn follows from the generator that is passed, so that a
resumed run sees the same. Crops and colours are DINOv2's (arXiv:2304.07193), blocks of hidden patches BEiT's (arXiv:2106.08254).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: of red, green and blue in a grey picture
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Crops:
    """Crops of one size.

    Args:
        count: how many.
        size: side in pixels, after scaling.
        scale: smallest and largest share of the picture's area.
        colour: strength of the changes of brightness, contrast, saturation and hue; 0 for none.
        blur: chance of a blur, of each view in turn; the last one's for those after it.
        solarise: chance of turning bright values round, likewise.
        dihedral: any of the eight symmetries of the square, for pictures from above; else mirrored by half.
    """

    count: int
    size: int
    scale: tuple[float, float]
    colour: float = 1.0
    blur: tuple[float, ...] = (1.0, 0.1)
    solarise: tuple[float, ...] = (0.0, 0.2)
    dihedral: bool = False

    def draw(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """[count, C, size, size]."""
        return torch.stack([self._one(picture, rng, number) for number in range(self.count)])

    def _one(self, picture: Tensor, rng: np.random.Generator, number: int) -> Tensor:
        made = turned(crop(picture, self.size, self.scale, rng), rng, self.dihedral)
        if self.colour:
            made = recoloured(made, self.colour, rng)
            if rng.random() < self.blur[min(number, len(self.blur) - 1)]:
                # a radius of 0.1 to 2 at 224 pixels
                made = blurred(made, rng.uniform(0.1, 2.0) * self.size / 224)
            if rng.random() < self.solarise[min(number, len(self.solarise) - 1)]:
                made = torch.where(made >= 0.5, 1 - made, made)
        return made


def crop(picture: Tensor, size: int, scale: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """A window of a share of the area, of proportions 3 : 4 to 4 : 3, brought to a square of `size` pixels."""
    height, width = picture.shape[-2:]
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h = w = min(height, width)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return resized(picture[:, top : top + h, left : left + w], size)


def resized(picture: Tensor, size: int) -> Tensor:
    """A square of `size` pixels, values kept within those of the picture."""
    if tuple(picture.shape[-2:]) == (size, size):
        return picture
    made = F.interpolate(picture[None], (size, size), mode="bicubic", align_corners=False, antialias=True)[0]
    return made.clamp(picture.min(), picture.max())


def turned(picture: Tensor, rng: np.random.Generator, dihedral: bool) -> Tensor:
    """Mirrored by half; with `dihedral` turned by quarters too."""
    turns, flipped = int(rng.integers(4)), bool(rng.random() < 0.5)
    made = torch.rot90(picture, turns, (-2, -1)) if dihedral else picture
    return made.flip(-1) if flipped else made


def recoloured(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness and contrast by up to 0.4 and, of RGB, saturation by 0.2 and hue by 0.1, in eight of ten; one RGB picture in five grey."""
    bright, contrast, saturation = (1 + strength * rng.uniform(-a, a) for a in (0.4, 0.4, 0.2))
    angle, happens, grey = (
        2 * np.pi * strength * rng.uniform(-0.1, 0.1),
        rng.random() < 0.8,
        rng.random() < 0.2,
    )
    rgb = picture.shape[0] == 3
    if happens:
        picture = picture * bright
        middle = (_grey(picture) if rgb else picture).mean((-2, -1), keepdim=True)
        picture = middle + (picture - middle) * contrast
        if rgb:
            light = _grey(picture)
            picture = light + _rotated(picture - light, angle) * saturation
            picture = picture.clamp(0, 1)
    return _grey(picture).expand(3, -1, -1) if rgb and grey and strength > 0 else picture


def _grey(picture: Tensor) -> Tensor:
    return (picture * picture.new_tensor(GREY).view(3, 1, 1)).sum(0, keepdim=True)


def _rotated(colour: Tensor, angle: float) -> Tensor:
    """Colours turned about the grey axis."""
    c, s, third = np.cos(angle), np.sin(angle), 1 / 3
    a, b = c + (1 - c) * third, s * third**0.5
    d = (1 - c) * third
    turn = colour.new_tensor([[a, d - b, d + b], [d + b, a, d - b], [d - b, d + b, a]])
    return torch.einsum("ij,jhw->ihw", turn, colour)


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of this width, over up to nine pixels."""
    if sigma < 0.05:
        return picture
    reach = min(4, max(1, round(3 * sigma)), min(picture.shape[-2:]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=picture.dtype) / sigma) ** 2)
    weights = weights / weights.sum()
    wide = F.pad(picture[:, None], (reach, reach, reach, reach), mode="reflect")
    made = F.conv2d(F.conv2d(wide, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return made[:, 0]


@dataclass(frozen=True)
class Hidden:
    """Which patches are hidden.

    Args:
        ratio: smallest and largest share of a picture's patches.
        chance: of a picture to have any hidden.
        blocks: as rectangles; else one by one, the same number in every picture of one ratio.
    """

    ratio: tuple[float, float] = (0.1, 0.5)
    chance: float = 0.5
    blocks: bool = True

    def draw(self, side: int, groups: int, rng: np.random.Generator) -> np.ndarray:
        """[groups side^2] of bool; blocks hide a place in every group, single patches are drawn in each."""
        total = side * side
        if rng.random() >= self.chance:
            return np.zeros(groups * total, bool)
        share = rng.uniform(*self.ratio)
        if self.blocks:
            return np.tile(_blocks(side, int(share * total), rng).reshape(-1), groups)
        parts = []
        for _ in range(groups):  # as many in each, so that every group has its part in the loss
            part = np.zeros(total, bool)
            part[rng.permutation(total)[: round(share * total)]] = True
            parts.append(part)
        return np.concatenate(parts)


def _blocks(side: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    made = np.zeros((side, side), bool)
    for _ in range(40):
        left = wanted - int(made.sum())
        if left <= 0:
            break
        area = rng.uniform(min(4, left), max(left, 4))
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = (min(side, max(1, round(v))) for v in ((area * ratio) ** 0.5, (area / ratio) ** 0.5))
        top, at = int(rng.integers(side - h + 1)), int(rng.integers(side - w + 1))
        new = ~made[top : top + h, at : at + w]
        if 0 < int(new.sum()) <= left:
            made[top : top + h, at : at + w] = True
    places = np.flatnonzero(~made)
    rest = max(wanted - int(made.sum()), 0)  # what rectangles did not fill
    made.reshape(-1)[rng.permutation(places)[:rest]] = True
    return made
