"""A small stack of layers and a teacher that differs from it by planted updates."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from _harness import Loss, Score
from torch import Tensor, nn
from torch.nn import functional as F


class Stack(nn.Module):
    """Residual layers x + gelu(W norm(x) + b), a small encoder."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.gelu(layer(F.layer_norm(x, x.shape[-1:])))
        return x


def planted(ranks: Sequence[int], width: int = 32) -> tuple[nn.Module, Loss, Score]:
    """A stack, and loss and error of imitating it with each layer changed by an update of the given rank (0: as it is)."""
    base = Stack(len(ranks), width)
    drawn = (torch.randn(width, rank) @ torch.randn(rank, width) if rank else None for rank in ranks)
    return taught(base, drawn)


def taught(base: Stack, updates: Iterable[Tensor | None]) -> tuple[nn.Module, Loss, Score]:
    """The stack, and loss and error of imitating it with each layer changed, by its own norm, along these updates.

    The error is relative to the unadapted stack's.
    """
    width = base.layers[0].in_features
    teacher = copy.deepcopy(base).requires_grad_(False)
    for layer, update in zip(teacher.layers, updates, strict=True):
        if update is not None:
            layer.weight += layer.weight.norm() * update / update.norm()  # type: ignore[operator]
    fixed = torch.randn(1024, width)
    with torch.no_grad():
        size = float(F.mse_loss(base(fixed), teacher(fixed)))

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        x = torch.randn(128, width, generator=generator)
        return F.mse_loss(model(x), teacher(x)) / size

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(fixed), teacher(fixed))) / size

    return base, loss, score
