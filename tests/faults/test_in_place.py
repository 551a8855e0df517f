"""What a model changes in place behind an adapted layer: the gradients are those of the same model without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import adaptome as ad
from tests.grid.sites import move, small


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
    known = ad.list_methods()
    return [name for name in known if small(name).admits(host) is None and "polyhistor" not in name]


@pytest.fixture(autouse=True)
def steered(request):
    """The facts that a method wants to be told."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    facts = small(parameters["method"]).example_facts()[0] if "method" in parameters else {}
    with ad.steer(**facts):
        yield


@pytest.mark.parametrize("kind, method", [(kind, method) for kind in INPUTS for method in methods_on(kind)])
def test_every_method_has_the_gradients_of_the_model_without(kind, method):
    chosen = small(method)
    for change in CHANGES:
        for x in [INPUTS[kind]] + ([INPUTS[kind].flatten(0, 1)] if kind == "linear" else []):
            plain = gradients(chosen, kind, change, False, x)
            changed = gradients(chosen, kind, change, True, x)
            assert plain and plain.keys() == changed.keys()
            for key, expected in plain.items():
                torch.testing.assert_close(changed[key], expected, msg=lambda m: f"{change} {key}: {m}")  # noqa: B023


@pytest.mark.parametrize("way", ["checkpoint", "dropout", "autocast", "twice", "float64", "rows", "compiled"])
@pytest.mark.parametrize("method", ["lora", "dora", "sparse-delta"])
def test_neither_do_they_change_in_other_ways_to_train(method, way):
    settings = {"dropout": 0.5} if way == "dropout" and method != "sparse-delta" else {}
    chosen = small(method).replace(**settings)

    def run(model: Changed, x: Tensor) -> Tensor:
        if way == "checkpoint":
            return checkpoint(model, x, use_reentrant=False)
        if way == "twice":  # an adapter below: the layer is not run again
            ad.attach(model, "lora", "second", targets="=first", seed=6, dropout=0.5)
            ad.activate(model, ["second", "default"])
        if way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)
        if way == "compiled":
            return torch.compile(model, backend="aot_eager")(x)
        return model.double()(x.double()) if way == "float64" else model(x)

    x = torch.randn(40, 16) if way == "rows" else INPUTS["linear"]
    for change in CHANGES:
        plain = gradients(chosen, "linear", change, False, x, run)
        changed = gradients(chosen, "linear", change, True, x, run)
        bounds = {"rtol": 0.1, "atol": 0.1} if way == "autocast" else {}
        for key, expected in plain.items():
            torch.testing.assert_close(changed[key], expected, **bounds, msg=lambda m: f"{change} {key}: {m}")  # noqa: B023


def test_a_step_without_changes_keeps_what_it_kept():
    """DoRA keeps one tensor of its output's size: the output, which the next layer keeps as well."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    layer, x = nn.Linear(16, 24), torch.randn(50, 16, requires_grad=True)
    ad.attach(layer, "dora", r=2, targets="=")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x).cos()
    own = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers()]}
    large = [size for key, size in kept.items() if key not in own and size >= 50 * 16 * 4]
    assert sorted(large) == [50 * 16 * 4, 50 * 24 * 4], y.shape


def test_doras_second_derivatives():
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    ad.attach(layer, "dora", r=2, alpha=3.0, targets="=")
    move(layer)
    adapter = layer.adaptome["default"]
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def second(y: Tensor) -> tuple[Tensor, ...]:
        (dm,) = torch.autograd.grad(y.sin().sum(), adapter.m, create_graph=True)
        return torch.autograd.grad(dm.square().sum(), (x, adapter.A, adapter.B, adapter.m))

    V = layer.weight + 1.5 * adapter.B @ adapter.A
    plain = x @ V.T * (adapter.m / V.norm(dim=1).detach()) + layer.bias
    for found, expected in zip(second(layer(x)), second(plain), strict=True):
        torch.testing.assert_close(found, expected)
