"""Changes to pictures while training: drawn anew for each example and epoch from their numbers, so that a resumed run sees the same."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptome.core.errors import MissingExtraError

Change = Callable[[Any, np.random.Generator], Any]


class AugmentedPictures:
    """Rows whose column of pictures is changed.

    Args:
        rows: a data set.
        column: of pictures.
        read: what makes an RGB PIL picture of the column's values.
        seed: of what is drawn, together with the row's number and the epoch.
        change: a PIL picture, and what draws -> the picture, changed: `changed`, or one of `cropped`.
    """

    def __init__(self, rows: Any, column: str, read: Any, seed: int = 0, change: Change | None = None):
        self.rows, self.column, self.read, self.seed, self.epoch = rows, column, read, seed, 0
        self.change = change or changed

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self.rows[int(index)])
        rng = np.random.default_rng((self.seed, self.epoch, int(index)))
        row[self.column] = self.change(self.read(row[self.column]), rng)
        return row


def changed(picture: Any, rng: np.random.Generator) -> Any:
    """An RGB PIL picture, changed as GenD's are (arXiv:2508.06248).

    Mirrored by half; turned by up to 10 degrees, moved by up to a tenth, scaled by 0.9 to 1.1; one in ten blurred (over 7 pixels,
    sigma 0.1 to 2); brightness and contrast by up to a tenth; stored as JPEG of quality 40 to 100.
    """
    try:
        from PIL import Image, ImageEnhance, ImageFilter, ImageOps
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    picture = picture.transform(
        picture.size, Image.Transform.AFFINE, _affine(picture.size, rng), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.1:
        # Pillow's radius is the sigma
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        picture = enhance(picture).enhance(rng.uniform(0.9, 1.1))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=int(rng.integers(40, 101)))
    return Image.open(held).convert("RGB")


def cropped(least: float = 0.08, stretch: float = 4 / 3) -> Change:
    """What cuts a part of a picture, makes a square of it, and mirrors it by half (torchvision's RandomResizedCrop).

    Args:
        least: the least share of the picture's area that is cut.
        stretch: the largest proportion of the part's sides.
    """

    def change(picture: Any, rng: np.random.Generator) -> Any:
        from PIL import Image, ImageOps

        wide, high = picture.size
        area = wide * high * rng.uniform(least, 1.0)
        ratio = math.exp(rng.uniform(-math.log(stretch), math.log(stretch)))
        w, h = min(wide, math.sqrt(area * ratio)), min(high, math.sqrt(area / ratio))
        left, top = rng.uniform(0, wide - w), rng.uniform(0, high - h)
        side = min(wide, high)
        made = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        return ImageOps.mirror(made) if rng.random() < 0.5 else made

    return change


def _affine(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
    """The map from the new picture's pixels to the old one's: about the middle."""
    wide, high = size
    angle, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(0.9, 1.1)
    move = rng.uniform(-0.1, 0.1, 2) * size
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = wide / 2 + move[0], high / 2 + move[1]
    return (cos, sin, wide / 2 - cos * x - sin * y, -sin, cos, high / 2 + sin * x - cos * y)
