"""Masks: pictures whose pixels are numbers of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.rasters import read_raster

#: the number of a pixel whose class is not known
IGNORED = 255


def read_mask(one: Any) -> tuple[np.ndarray, str]:
    """A mask [height, width] as stored, and its name, of a path, a PIL image or an array.

    A palette's numbers are the classes; of a colour picture all channels must be the same.

    Raises:
        DataError: it cannot be read, or its channels differ.
    """
    indexed = _palette(one)
    if indexed is not None:
        return indexed, str(one)
    raster = read_raster(one)
    pixels = raster.pixels
    if pixels.shape[-1] > 1 and (pixels[..., :1] != pixels[..., : min(3, pixels.shape[-1])]).any():
        raise DataError(
            f"{raster.name}: a mask has one number per pixel, and this has colours. Store it as grey values or with a palette."
        )
    return pixels[..., 0], raster.name


def _palette(one: Any) -> np.ndarray | None:
    """The numbers of a PNG or GIF with a palette, which are not to be turned into its colours."""
    if not isinstance(one, str) or not one.lower().endswith((".png", ".gif")):
        return None
    from PIL import Image

    try:
        with Image.open(one) as opened:
            return np.asarray(opened) if opened.mode == "P" else None
    except (OSError, SyntaxError) as error:
        raise DataError(f"{one} is not an image that can be read: {error}") from error


def binary(mask: np.ndarray, ignored: int | None = None, threshold: int | None = None) -> np.ndarray:
    """A mask as 0, 1 and `IGNORED`, of uint8.

    Args:
        mask: [height, width].
        ignored: the value of pixels that are not known.
        threshold: values from which a pixel is 1; None for 1 where the mask holds no other value but 0 and 1 (and the ignored
            one), for 128 elsewhere: masks are stored as 0 and 255, and a soft edge is not to vanish.
    """
    known = np.ones(mask.shape, bool) if ignored is None else mask != ignored
    if threshold is None:
        threshold = 1 if mask[known].max(initial=0) <= 1 else 128
    return np.where(known, (mask >= threshold).astype(np.uint8), np.uint8(IGNORED))


def classes(mask: np.ndarray, count: int, name: str, ignored: int = IGNORED) -> np.ndarray:
    """A mask of class numbers below `count`, with `IGNORED` where it holds the ignored value; uint8.

    Raises:
        DataError: a number that is no class; names the mask.
    """
    if not np.issubdtype(mask.dtype, np.integer):
        raise DataError(f"{name}: class numbers are stored as {mask.dtype}; expected whole numbers.")
    wrong = (mask != ignored) & ((mask < 0) | (mask >= count))
    if wrong.any():
        raise DataError(
            f"{name} holds the class number {int(mask[wrong][0])}; there are {count} classes, numbered from 0, and {ignored} for what is not known."
        )
    return np.where(mask == ignored, IGNORED, mask).astype(np.uint8)
