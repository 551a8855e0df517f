"""Convolutions over the tokens that pass through a transformer: as a line, or as the grid of an image or a spectrogram."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from adaptome.core.errors import HostError


def as_batch(h: Tensor, asking: str) -> Tensor:
    """Activations as `[batch, tokens, d]`.

    Raises:
        HostError: they have no dimension of tokens, as in models that put all samples' tokens into one row (OPT).
    """
    if h.dim() < 3:
        raise HostError(
            f"{asking} mixes neighbouring tokens, and here they come as {list(h.shape)}, without a dimension for the samples.\n"
            "  Put it on a module that sees [batch, tokens, d]: targets='attention-blocks'."
        )
    return h if h.dim() == 3 else h.flatten(1, -2)


def depthwise(z: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """One filter a channel over the tokens, as many out as in: z `[batch, b, tokens]`, kernel `[b, k]`, bias `[b]`.

    An even kernel reaches one further to the right.
    """
    k = kernel.shape[1]
    padded = F.pad(z, ((k - 1) // 2, k // 2))
    return F.conv1d(padded, kernel[:, None], bias, groups=z.shape[1])


def grid_of(tokens: int, rows: int, asking: str) -> tuple[int, int, int]:
    """Special tokens in front, rows and columns of the grid; rows = 0 for a square.

    Raises:
        HostError: there are fewer tokens than rows.
    """
    high = rows or math.isqrt(tokens)
    wide = tokens // high
    wide = wide if rows else high
    if wide == 0:
        raise HostError(f"{asking}: {tokens} tokens do not fill a grid of {rows} rows.")
    return tokens - high * wide, high, wide
