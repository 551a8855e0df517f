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
    return conv(F.pad(z, ((k - 1) // 2, k // 2)), kernel[:, None], bias, groups=z.shape[1])


def conv(z: Tensor, kernel: Tensor, bias: Tensor, padding: int = 0, groups: int = 1) -> Tensor:
    """A convolution in one or two dimensions, in z's precision."""
    run = F.conv1d if z.dim() == 3 else F.conv2d
    return run(z, kernel.to(z.dtype), bias.to(z.dtype), padding=padding, groups=groups)


def channels_last(z: Tensor) -> Tensor:
    """`[batch, b, tokens]` as `[batch, tokens, b]`, in its own memory.

    On a transposed view torch orders a product by whether the weight asks for a gradient, so that a frozen adapter would differ by a bit.
    """
    return z.mT.contiguous()


#: class, distillation and register tokens; more of them in front of a square were never meant
MOST_SPECIAL = 8


def grid_of(tokens: int, rows: int, asking: str) -> tuple[int, int, int]:
    """Special tokens in front, rows and columns of the grid; rows = 0 for a square.

    Raises:
        HostError: there are fewer tokens than rows, or no rows are given and the tokens are no square.
    """
    high = rows or math.isqrt(tokens)
    wide = tokens // high
    wide = wide if rows else high
    if wide == 0:
        raise HostError(f"{asking}: {tokens} tokens do not fill a grid of {rows} rows.")
    special = tokens - high * wide
    if not rows and special > MOST_SPECIAL:
        raise HostError(
            f"{asking}: {tokens} tokens are no square with a few special ones in front ({high} x {wide} leave {special}).\n"
            "  Say how high the grid is, for AST the bands that its patches make: rows=12; or take the tokens as a line: dims=1."
        )
    return special, high, wide
