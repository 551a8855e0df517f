"""LoRA's options beyond the paper's."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MethodError
from tests.methods.helpers import adapted, batch, linear, shake


def test_lora_with_a_trained_scale():
    layer, x = linear(), batch(3, 5, 12)
    method = ad.LoRA(r=4, alpha=6.0, train_scale=True)
    model, a = adapted(layer, method)
    assert torch.equal(model(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert ad.trainable(model).count == method.parameters(a.host) == 4 * 32 + 1
    shake(model)
    expected = x @ (a.host.weight() + 1.5 * a.t * a.B @ a.A).T + layer.bias
    torch.testing.assert_close(model(x), expected)
    model(x).square().sum().backward()
    assert a.t.grad.abs() > 0
    A, B = a.as_lora()
    torch.testing.assert_close(B @ A, a.delta().detach())
    with pytest.raises(MethodError, match="train_scale with init='pissa'"):
        ad.LoRA(init="pissa", train_scale=True)
