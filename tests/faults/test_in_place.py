"""What a model changes in place behind an adapted layer: the gradients are those of the same model without."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.grid.sites import move, small
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import adaptome as ad


class Changed(nn.Module):
    """Two layers; between them the first one's output is changed, in place or not."""

    def __init__(self, kind: str, change: str, in_place: bool):
        super().__init__()
        torch.manual_seed(0)
        layers = {
            "linear": lambda: nn.Linear(16, 24),
            "conv": lambda: nn.Conv1d(16, 24, 3, padding=1),
            "norm": lambda: nn.LayerNorm(16),
            "embedding": lambda: nn.Embedding(12, 24),
        }
        self.first = layers[kind]()
        self.change, self.in_place = change, in_place
        self.scale = nn.Parameter(torch.rand(1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.change == "relu":
            y = nn.functional.relu(y, inplace=self.in_place)
        elif self.change == "scale":
            y = y.mul_(self.scale) if self.in_place else y * self.scale
        elif self.change == "residual":
            y = y.add_(torch.sin(y.detach())) if self.in_place else y + torch.sin(y.detach())
        else:  # a part of it, as of a fused map for q, k and v
            q = y[..., : y.shape[-1] // 2]
            if self.in_place:
                q *= 2.0
            else:
                y = torch.cat([q * 2.0, y[..., q.shape[-1] :]], -1)
        return y.cos()


INPUTS = {
    "linear": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)),
    "conv": torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1)),
    "norm": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)),
    "embedding": torch.arange(10).view(2, 5),
}
CHANGES = ("relu", "scale", "residual", "part")


def gradients(method: ad.Method, kind: str, change: str, in_place: bool, x: Tensor, run=None) -> dict:
    model = Changed(kind, change, in_place).train()
    ad.attach(model, copy.deepcopy(method), targets="=first", seed=2)
    move(model)
    torch.manual_seed(4)  # of dropout
    y = model(x) if run is None else run(model, x)
    y.sum().backward()
    return {k: p.grad for k, p in ad.parameters_of(model).items() if p.grad is not None}


def methods_on(kind: str) -> list[str]:
    layer = Changed(kind, "relu", True)
    host = ad.core.hosts.host_of(layer.first, "first")
    return [name for name in ad.list_methods() if small(name).admits(host) is None]


@pytest.mark.parametrize(
    "kind, method", [(kind, method) for kind in INPUTS for method in methods_on(kind)]
)
def test_every_method_has_the_gradients_of_the_model_without(kind, method):
    chosen = small(method)
    for change in CHANGES:
        for x in [INPUTS[kind]] + ([INPUTS[kind].flatten(0, 1)] if kind == "linear" else []):
            plain = gradients(chosen, kind, change, False, x)
            changed = gradients(chosen, kind, change, True, x)
            assert plain and plain.keys() == changed.keys()
            for key, expected in plain.items():
                torch.testing.assert_close(changed[key], expected, msg=lambda m: f"{change} {key}: {m}")  # noqa: B023
