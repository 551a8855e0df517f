r"""A transformer block on tokens, of one sequence or of one that looks at another.

    x = x + O attend(Q n(x), K n'(y), V n'(y)),   x = x + D gelu(U n(x)),      y = x where there is no other sequence

shapes    x [batch, n, C], y [batch, m, C] -> [batch, n, C]; mask [batch, m], False where y is no token
linear    queries, keys, values and output are layers of their own, so that adapters find them (nn.MultiheadAttention hides them)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError


class Attention(nn.Module):
    """Of x over y."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ModelError(f"model: {heads} heads do not divide a width of {width}.")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(one).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, one in ((self.q_proj, x), (self.k_proj, y), (self.v_proj, y))
        )
        seen = None if mask is None else mask[:, None, None].bool()
        made: Tensor = self.o_proj(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))
        return made


class Block(nn.Module):
    """Attention, then two linear maps; norms before both.

    Args:
        crossed: it looks at another sequence, which has a norm of its own.
    """

    def __init__(self, width: int, heads: int, crossed: bool = False, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_other = nn.LayerNorm(width) if crossed else None
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, other: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        own = self.norm1(x)
        seen = own if self.norm_other is None or other is None else self.norm_other(other)
        x = x + self.dropout(self.attention(own, seen, mask))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


def sinusoids(length: int, width: int) -> Tensor:
    """Positions as sines and cosines [length, width]."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
