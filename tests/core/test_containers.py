"""Modules that hold others: a Sequential is adapted like any module, a list of modules is never called and says so."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.adapter import Adapted
from adaptome.core.errors import HostError
from tests.core.models import move

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(X)


def series(adapter, z: torch.Tensor) -> torch.Tensor:
    return z + torch.tanh(z @ adapter.D.T) @ adapter.U.T


@pytest.mark.parametrize("where", ["inside", "root"])
def test_a_sequential_is_adapted_like_any_module(where, tmp_path):
    def make() -> nn.Module:
        return body() if where == "root" else Net()

    model, base = make(), make()
    ad.attach(model, "series", targets="=" if where == "root" else "body", size=2, seed=1)
    assert torch.equal(run(model), run(base))
    move(model)
    (adapter,) = ad.adapters(model)["default"].adapters.values()
    with torch.no_grad():
        z = series(adapter, (base if where == "root" else base.body)(X))
        torch.testing.assert_close(run(model), z if where == "root" else base.head(z))
    expected = run(model)
    assert all(
        torch.equal(run(other), expected)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    )
    ad.save(model, tmp_path / "a")
    other = make()
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other), expected)
    model.train()(X).sum().backward()
    ad.check_gradients(model)
    ad.detach(model)
    assert torch.equal(run(model), run(base)) and [type(m) for m in model.modules()] == [
        type(m) for m in base.modules()
    ]


def test_an_adapted_sequential_shows_its_own_modules():
    model, plain = body(), body()
    ad.attach(model, "series", targets="=", size=2)
    assert isinstance(model, Adapted) and len(model) == 3
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert model[-1] is model.get_submodule("2") and model[0] is next(iter(model))
    part = model[:2]
    assert type(part) is nn.Sequential and torch.equal(run(part), run(plain[:2]))
    model.append(nn.Tanh())
    assert len(model) == 4 and torch.equal(run(model), run(plain).tanh())


def test_adapters_on_a_sequential_nest_with_those_inside_and_with_what_they_share():
    model = body()
    ad.attach(model, "lora", "low", targets="0", r=2, seed=1)
    ad.attach(
        model, "polyhistor", targets="=", tasks=("a",), seed=2
    )  # whose shared part the root keeps beside its modules
    for name in ("low", "default"):
        move(model, name)
    with ad.steer(task="a"):
        both = run(model)
        ad.merge(model, "low")
        torch.testing.assert_close(run(model), both)
        ad.unmerge(model)
        ad.activate(model, "default")
        one = run(model)
        ad.detach(model, "low")
        assert torch.equal(run(model), one) and not torch.allclose(one, both)


def test_an_adapted_sequential_compiles_in_one_graph():
    torch._dynamo.reset()
    model = Net()
    ad.attach(model, "series", targets="body", size=2, seed=1)
    move(model)
    torch.testing.assert_close(run(torch.compile(model, backend="eager", fullgraph=True)), run(model))


@pytest.mark.parametrize(
    ("container", "kind"),
    [(nn.ModuleList([body()]), "ModuleList"), (nn.ModuleDict({"a": body()}), "ModuleDict")],
)
def test_a_list_of_modules_is_refused(container, kind):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = container

    for model, target in ((Holder(), "parts"), (container, "=")):
        with pytest.raises(
            HostError,
            match=rf"series cannot be put on .*: a {kind} only lists its modules and is never called",
        ):
            ad.attach(model, "series", targets=target, size=2)
        assert ad.adapters(model) == {}
