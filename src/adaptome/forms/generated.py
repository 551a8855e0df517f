"""Matrices that hypernetworks generate from an embedding: `K (x) P Q`, with `P = reshape(H_P v)` and `Q = reshape(H_Q v)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Generator(nn.Module):
    """The hypernetworks and the kernel of one matrix `K (x) P Q` `[rows, columns]`.

    Args:
        k: size of the embedding.
        r: inner rank of P Q; None for one hypernetwork that makes the template whole.
        rows, columns: of the matrix.
        scale: how many times smaller the template is, each way; None for no kernel.
        zero: start at 0.
    """

    def __init__(self, k: int, r: int | None, rows: int, columns: int, scale: int | None, zero: bool):
        super().__init__()
        a, b = rows // (scale or 1), columns // (scale or 1)
        self.shapes = ((a, b),) if r is None else ((a, r), (r, b))
        variances = (1 / (3 * b),) if r is None else (1 / r, 1 / (3 * b))
        bounds = [math.sqrt(3 * variance) for variance in variances]  # |v|^2 is 1 on average
        sizes = zip(self.shapes, bounds, strict=True)
        self.H = nn.ParameterList([torch.empty(m * n, k).uniform_(-bound, bound) for (m, n), bound in sizes])
        if zero:
            nn.init.zeros_(self.H[0])
        self.K = (
            nn.Parameter(torch.eye(scale) + 0.02 * torch.randn(scale, scale)) if scale is not None else None
        )

    def forward(self, v: Tensor) -> list[Tensor]:
        """The factors of the template, `[*, rows, columns]` each, of embeddings `[*, k]`."""
        made = zip(self.H, self.shapes, strict=True)
        return [F.linear(v, H).unflatten(-1, shape) for H, shape in made]


def product(x: Tensor, K: Tensor | None, factors: Sequence[Tensor]) -> Tensor:
    """`(K (x) F_1 F_2 ...) x` for each row of x `[*, rows, columns]`, with K applied where X is narrowest.

    Args:
        x: of one sample, or of a batch.
        K: None for the number 1.
        factors: each `[a, b]`, or `[*, a, b]`.
    """
    s = 1 if K is None else K.shape[0]
    X = x.reshape(*x.shape[:-2], -1, x.shape[-1] // s)
    widths = [X.shape[-1], *(factor.shape[-2] for factor in reversed(factors))]
    narrowest = widths.index(min(widths))
    for step, width in enumerate(widths):
        if step:
            X = X @ factors[-step].to(x).mT
        if K is not None and step == narrowest:
            Z = X.reshape(-1, s, width)
            # torch.matmul would take another way, with other rounding, where nothing trains
            X = torch.bmm(K.to(x).expand(len(Z), s, s), Z).view(X.shape)
    return X.reshape(*x.shape[:-1], -1)
