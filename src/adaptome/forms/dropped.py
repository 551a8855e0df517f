"""`A dropout(x)` that keeps one bit a number for the backward, where autograd would keep the dropped copy of x and a byte-mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def dropped_linear(x: Tensor, A: Tensor, p: float) -> Tensor:
    """`linear(dropout(x, p), A)`: x `[..., in]`, A `[r, in]`, both of one type.

    The probability is rounded to a multiple of 2^-16, and the scale is the inverse of what is kept, so the mean is exact.
    """
    if torch.compiler.is_compiling():  # which fuses and recomputes masks by itself
        return F.linear(F.dropout(x, p), A)
    mask, scale = keep(x, p)
    return _Dropped.apply(x, A, mask, scale)


def keep(x: Tensor, p: float) -> tuple[Tensor, float]:
    """A random mask of x's shape, and the inverse of the probability to keep. Draws four 16-bit lanes a random word."""
    threshold = min(max(round((1 - p) * 65536), 1), 65536) - 32768
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    mask = words.view(torch.int16)[: x.numel()] < threshold
    return mask.view(x.shape), 65536 / (threshold + 32768)


_GATHER = 0x0102040810204080


def pack(mask: Tensor) -> Tensor:
    """Booleans as bits: eight 0/1 bytes seen as one word, gathered into its top byte by a multiplication."""
    flat = mask.reshape(-1)
    flat = F.pad(flat, (0, -flat.numel() % 8))
    return ((flat.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (bits[:, None] & places).view(-1)[: shape.numel()].view(shape) != 0


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(x, A, pack(mask))
        return F.linear(x * mask, A * scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, A, bits = ctx.saved_tensors
        mask = unpack(bits, x.shape)
        dx = (grad @ (A * ctx.scale)).mul_(mask) if ctx.needs_input_grad[0] else None
        dA = None
        if ctx.needs_input_grad[1]:
            dA = (grad.flatten(0, -2).t() @ (x * mask).flatten(0, -2)) * ctx.scale
        return dx, dA, None, None
