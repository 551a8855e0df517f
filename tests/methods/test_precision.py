"""On a float64 base every method starts, and keeps what it keeps, in float64."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad
from adaptome.core.errors import AdaptomeError
from adaptome.interpretation.update import update_of
from tests.grid.sites import SMALL
from tests.methods.helpers import adapted, linear


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes)).double()


@pytest.mark.parametrize("name", ad.list_methods())
def test_tensors_are_of_the_bases_precision(name):
    cls, model = ad.list_methods()[name], llama()
    known = {field.name for field in dataclasses.fields(cls)}
    try:
        ad.attach(model, name, **{k: v for k, v in SMALL.items() if k in known})
    except AdaptomeError as error:
        pytest.skip(str(error))
    for module in ad.adapters(model)["default"].modules():
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            assert value.dtype == torch.float64 or not value.is_floating_point(), key


@pytest.mark.parametrize(
    ("method", "tensor", "value"),
    [
        (ad.VeRA(r=4, d_initial=0.1), "d", 0.1),
        (ad.RandLoRA(r=5), "gamma", 1 / 12),
        (ad.MTLoRA(scale=0.3, train_scale=True), "s.shared", 0.3),
        (ad.LoLDU(r=3, alpha=0.7), "sigma", 0.7 / 3),
    ],
)
def test_a_constant_start_is_not_rounded(method, tensor, value):
    _, adapter = adapted(linear(), method)
    assert (dict(adapter.named_parameters())[tensor] == value).all()


def test_an_update_keeps_the_precision():
    _, adapter = adapted(linear(), ad.LoRA(r=2))
    nn.init.normal_(adapter.B)
    torch.testing.assert_close(update_of(adapter), adapter.delta(), rtol=0, atol=1e-15)
