"""Each kind of layer shows one canonical weight, and a factor pair acts as the layer would with their product as its weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.core.hosts import first_input, host_of, unmerged


class Blocks(nn.Linear):
    """A linear layer whose rows belong to the groups of its input in turn, as DeepSeek-V4's `o_a_proj`."""

    n_groups = 3

    def forward(self, x):
        rows = self.weight.view(self.n_groups, -1, self.in_features)
        return torch.stack([x[..., g, :] @ rows[g].T for g in range(self.n_groups)], -2)


LAYERS = {
    "blocks": (Blocks(6, 12, bias=False), (2, 4, 3, 6)),
    "linear": (nn.Linear(6, 10), (3, 6)),
    "Conv1D": (Conv1D(10, 6), (3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 11)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), groups=2, padding="same"), (2, 4, 5, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"), (2, 4, 5, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1, padding_mode="replicate"), (1, 2, 3, 4, 3)),
    "unbatched": (nn.Conv2d(4, 6, 3), (4, 5, 6)),
    "embedding": (nn.Embedding(9, 5), None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_reduce_and_expand_are_the_layer_with_the_product_as_weight(name):
    layer, shape = LAYERS[name]
    host, generator = host_of(layer, "here"), torch.Generator().manual_seed(0)
    x = torch.randint(9, (2, 4)) if shape is None else torch.randn(shape, generator=generator)
    A, B = torch.randn(3, host.fan_in, generator=generator), torch.randn(host.fan_out, 3, generator=generator)
    assert host.shape == (host.fan_out, host.fan_in) == tuple(host.weight().shape)
    assert torch.equal(host.native(host.canonical(layer.weight)), layer.weight)
    twin = type(layer).__new__(type(layer))
    twin.__dict__.update({k: dict(v) if k == "_parameters" else v for k, v in vars(layer).items()})
    twin._parameters["weight"] = nn.Parameter(host.native(B @ A).contiguous())
    if "bias" in twin._parameters:
        twin._parameters["bias"] = nn.Parameter(torch.zeros(host.fan_out))
    expected = twin(x)
    torch.testing.assert_close(host.expand(host.reduce(x, A), B), expected, rtol=1e-4, atol=1e-4)
    y = layer(x)
    torch.testing.assert_close(
        host.add_expanded(y, host.reduce(x, A), B, 0.5), y + 0.5 * expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "method", [n for n, m in ad.list_methods().items() if {"linear", "parameter"} <= {*m.hosts}]
)
def test_a_linear_layer_in_blocks_merges_to_what_it_puts_out(method):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": Blocks(16, 48, bias=False)}).double().eval()
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    try:
        ad.attach(model, method, targets="a", dtype=torch.float64, seed=0)
    except (HostError, MethodError, StateError):  # what it needs besides, of any layer
        with pytest.raises((HostError, MethodError, StateError)):
            ad.attach(nn.ModuleDict({"a": nn.Linear(16, 48)}).double(), method, targets="a", seed=0)
        return
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    facts = ad.list_methods()[method]().example_facts()[0]
    with ad.steer(**facts):
        before = model["a"](x)
        ad.merge(model)
        torch.testing.assert_close(model["a"](x), before)


def test_kinds_and_names():
    kinds = {
        "linear": nn.Linear(2, 3), "conv": nn.Conv1d(2, 3, 1), "embedding": nn.Embedding(2, 3), "norm": nn.GroupNorm(1, 2),
        "module": nn.Sequential(nn.Linear(2, 3)),
    }  # fmt: skip
    assert {k: host_of(m).kind for k, m in kinds.items()} == {k: k for k in kinds}
    assert host_of(nn.LayerNorm(3, elementwise_affine=False)).kind == "module"
    attention = nn.MultiheadAttention(4, 2)
    host = host_of(attention, "attn", "in_proj_weight")
    assert (host.kind, host.name, host.shape, host.lead) == ("parameter", "attn.in_proj_weight", (12, 4), ())
    assert host_of(attention, "attn", "in_proj_bias").kind == "vector"
    with pytest.raises(
        HostError, match=r"attn has no parameter 'nothing'; it has \['in_proj_weight', 'in_proj_bias'\]"
    ):
        host_of(attention, "attn", "nothing")
    with pytest.raises(
        HostError, match=r"wide.weight has shape \[2, 2, 1, 1\]: parameters of 1 to 3 dimensions"
    ):
        host_of(nn.Conv2d(2, 2, 1), "wide", "weight")


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_are_seen_as_out_by_in(transposed):
    layer = nn.Module()
    layer.down_proj = nn.Parameter(torch.randn(3, 4, 5))
    layer.is_transposed = transposed
    host = host_of(layer, "experts", "down_proj")
    assert host.kind == "experts" and host.copies == 3 and host.lead == (3,)
    assert host.shape == ((3, 5, 4) if transposed else (3, 4, 5)) == tuple(host.weight().shape)
    assert torch.equal(host.native(host.canonical(layer.down_proj)), layer.down_proj)


def test_the_width_of_a_module_is_that_of_its_norm_or_last_map():
    assert host_of(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))).width == 4
    assert host_of(nn.ModuleDict({"norm": nn.LayerNorm(7), "map": nn.Linear(7, 3)})).width == 7
    with pytest.raises(HostError, match="mine .Sequential. has no norm or linear layer that tells the width"):
        host_of(nn.Sequential(nn.ReLU()), "mine").width  # noqa: B018


def test_the_base_shows_through_a_merge_for_the_time_of_a_block():
    layer = nn.Linear(2, 2)
    old, new = layer.weight, nn.Parameter(torch.zeros(2, 2))
    layer._parameters["weight"] = new
    layer.__dict__["_unmerged"] = {"weight": old}
    host = host_of(layer)
    assert torch.equal(host.weight(), old) and torch.equal(host.current_weight(), new)
    with unmerged(layer):
        assert layer.weight is old
    assert layer.weight is new


def test_the_first_tensor_is_the_input():
    x = torch.ones(1)
    assert (
        first_input(nn.Linear(1, 1), (None, x), {}) is x
        and first_input(nn.Linear(1, 1), (), {"input": x}) is x
    )
    with pytest.raises(HostError, match=r"Linear was called without a tensor; its forward takes \['input'\]"):
        first_input(nn.Linear(1, 1), (1,), {})
