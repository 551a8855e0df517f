"""Two whole-trained copies of one module at once, and layers of blocks that hold only a list of experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import StateError
from adaptome.core.targets import resolve, roles
from tests.core.models import Net, move, run


def two(first: dict, second: dict) -> nn.Module:
    model = Net()
    for name, arguments in (("a", first), ("b", second)):
        ad.attach(model, "lora", name, r=2, seed=0, **arguments)
        move(model, name, seed=ord(name))
    return model


HEAD = {"targets": "wide", "train": ["classifier"]}


def test_two_copies_of_one_head_at_once_are_an_error():
    model = two(HEAD, HEAD)
    with pytest.raises(
        StateError,
        match="classifier.weight is trained whole in 'b', which would replace what 'a' makes of it",
    ):
        run(model)
    with pytest.raises(StateError, match="which would replace"):
        ad.merge(model)
    ad.activate(model, "a")
    alone = run(model)
    with pytest.raises(StateError, match=r"ad\.activate\(model, 'b'\)"):
        ad.activate(model, ["a", "b"])
    assert ad.active(model) == ["a"] and torch.equal(run(model), alone)
    ad.activate(model, "b")
    assert not torch.allclose(run(model), alone)


def test_a_copy_that_would_replace_another_adapters_layer_is_an_error():
    model = two({"targets": "classifier"}, HEAD)
    with pytest.raises(StateError, match="trained whole in 'b'"):
        run(model)
    ad.activate(model, ["b", "a"])  # an update of the trained copy
    run(model)


def test_copies_mix_by_weights_and_rows_stand_beside_each_other():
    model = two(HEAD, HEAD)
    ad.activate(model, ["a", "b"], weights={"b": 0.5})
    mixed, layer = run(model), model.classifier
    a, b = (ad.parameters_of(model, name)["classifier.weight"] for name in "ab")
    torch.testing.assert_close(layer.weight, (a + b) / 2)
    assert torch.isfinite(mixed).all()


class Experts(nn.Module):
    """A block that holds only a list of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)
        )

    def forward(self, x):
        return x + sum(expert(x) for expert in self.experts)


def stack() -> nn.Module:
    return nn.ModuleDict({"embed": nn.Embedding(5, 8), "layers": nn.ModuleList(Experts() for _ in range(2))})


def test_layers_are_the_blocks_where_a_block_holds_only_a_list_of_experts():
    found = resolve(stack(), "all-linear", layers=[1])
    assert [m.path for m in found] == [f"layers.1.experts.{i}.{k}" for i in range(3) for k in (0, 2)]
    assert {m.role for m in found} == {"expert"} and {m.layer for m in found} == {1}
    named = {role: [m.path for m in matches] for role, matches in roles(stack()).items()}
    assert named["blocks"] == ["layers.0", "layers.1"]
    assert named["up"] == [f"layers.{b}.experts.{i}.0" for b in range(2) for i in range(3)]
    assert named["down"] == [f"layers.{b}.experts.{i}.2" for b in range(2) for i in range(3)]
    assert len(named["experts"]) == 12
