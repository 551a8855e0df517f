r"""Streams: what a modality has of its own around a Q-Former that all modalities share, and how their tokens become one block.

    tokens_m = P_m qformer(Q_m; norm_m(E_m x))          x [batch, n, width] features; Q_m [1, q, d] queries; P_m d -> D
    side = SiLU(sum_k W_k h_k + b)                      h_k [batch, T, q, D], k the modalities but the first: a Linear over their concatenation

E_m is there where the features' width is not the encoder's. Adapters on the Q-Former, one for each modality, are no part of a stream: any method makes
them. sigma(u) u, the self-gate of the paper, is SiLU(u). Each modality has its own block W_k of the one matrix, so that another can be added beside it
and one that is missing adds nothing.

source    CREMA (Yu et al.), arXiv:2402.05889; its code makes the norm of points and never calls it, here it is called
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

#: by how much the code of places is scaled before it is added to points' features
PLACE = 0.01


class StreamSettings(BaseModel):
    """A modality."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["frames", "segments", "whole"] = Field(
        default="frames",
        description="features [T, n, width] of frames, [A, n, width] of segments, whose tokens are averaged, or [n, width] of the whole, such as points",
    )
    width: int | None = Field(
        default=None, ge=1, description="of the features; default: what the Q-Former attends to"
    )


class Stream(nn.Module):
    """What one modality has of its own: a projection of its features where their width asks for it, a norm, queries, a projection of its tokens."""

    def __init__(self, width: int, inner: int, queries: int, hidden: int, outer: int, eps: float):
        super().__init__()
        self.inward = nn.Linear(width, inner) if width != inner else nn.Identity()
        self.norm = nn.LayerNorm(inner, eps=eps)
        self.queries = nn.Parameter(torch.zeros(1, queries, hidden))
        self.outward = nn.Linear(hidden, outer)

    @torch.no_grad()
    def start(self, queries: Tensor, outward: nn.Module, norm: nn.Module | None) -> None:
        """Begin with queries, projection and norm of the pretrained model, or of another stream."""
        self.queries.copy_(queries)
        self.outward.load_state_dict(outward.state_dict())
        if norm is not None:
            self.norm.load_state_dict(norm.state_dict())


class Fusion(nn.Module):
    """Tokens of several modalities -> one block of as many as one has.

    Args:
        names: of the modalities.
        width: D.
        start: 'linear': as torch draws the one Linear over their concatenation; 'zero': it adds nothing until it has learned.
    """

    def __init__(self, names: Sequence[str], width: int, start: Literal["linear", "zero"]):
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
        self.bias = nn.Parameter(torch.zeros(width))
        bound = (width * max(len(names), 1)) ** -0.5 if start == "linear" else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, tokens: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """The block [batch, T, q, D].

        Args:
            tokens: by modality, [batch, T, q, D].
            available: by modality, [batch]: a row without it gets nothing of it.
        """
        found = self.bias
        for name, value in tokens.items():
            kept = available[name].to(value.dtype).view(-1, 1, 1, 1)
            found = found + self.maps[name](value * kept)
        return nn.functional.silu(found)


def place_code(places: Tensor, width: int) -> Tensor:
    """Sinusoidal code [n, width] of places [n, 3] in voxels: a third of the width for each coordinate, what is left over stays 0."""
    each = width // 3
    steps = torch.arange(each, device=places.device)
    rates = 10000.0 ** (-(2 * torch.div(steps, 2, rounding_mode="floor")) / each)
    angles = places.float()[..., None] * rates
    code = torch.where(steps % 2 == 0, angles.sin(), angles.cos()).flatten(-2)
    return nn.functional.pad(code, (0, width - code.shape[-1]))
