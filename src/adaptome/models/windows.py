"""Pictures larger than a model's window: maps of overlapping windows, averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin so that they cover `length`: every `step`, and a last one that ends with it.

    >>> starts(10, 4, 3)
    [0, 3, 6]
    >>> starts(11, 4, 3)
    [0, 3, 6, 7]
    """
    if length <= window:
        return [0]
    found = list(range(0, length - window + 1, step))
    return found if found[-1] == length - window else [*found, length - window]


def tiled(
    maps: Callable[..., Sequence[Tensor]], pixels: Sequence[Tensor], window: int, step: int
) -> list[Tensor]:
    """What `maps` makes of pictures, window by window: the mean of the maps where windows overlap.

    Args:
        maps: takes as many pictures [batch, bands, h, w] as there are, gives maps [batch, n, h, w].
        pixels: of one size [batch, bands, height, width].
        window: pixels on its side; a picture that is smaller is one window as it is.
        step: from window to window.
    """
    height, width = pixels[0].shape[-2:]
    if height <= window and width <= window:
        return list(maps(*pixels))
    sums: list[Tensor] | None = None
    seen = pixels[0].new_zeros(1, 1, height, width)
    for top in starts(height, window, step):
        for left in starts(width, window, step):
            part = (..., slice(top, min(top + window, height)), slice(left, min(left + window, width)))
            found = maps(*(one[part] for one in pixels))
            if sums is None:
                sums = [one.new_zeros(*one.shape[:-2], height, width) for one in found]
            for total, one in zip(sums, found, strict=True):
                total[part] += one
            seen[part] += 1
    assert sums is not None
    return [total / seen for total in sums]


def padded(pixels: Tensor, multiple: int, least: int = 0) -> Tensor:
    """Pictures [batch, bands, h, w] with their last rows and columns repeated, so that `multiple` divides the sides.

    Args:
        least: pixels on a side, at the least.
    """
    down, right = (max(-side % multiple, least - side) for side in pixels.shape[-2:])
    return F.pad(pixels, (0, right, 0, down), "replicate") if down or right else pixels


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [batch, n, h, w] at another size, linearly."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def doubled(maps: Tensor) -> Tensor:
    """Maps [batch, n, h, w] at twice the size, linearly."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def stacked(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several sizes along the channels, at the first one's size."""
    return torch.cat([resized(one, maps[0].shape[-2:]) for one in maps], 1)
