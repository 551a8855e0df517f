"""LoHa against its equation, autograd and PEFT's."""

import pytest
import torch
from torch import nn

import adaptome as ad
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake


def dense(a, alpha):
    return alpha / a.B1.shape[-1] * (a.B1 @ a.A1) * (a.B2 @ a.A2)


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize("tokens", [3, 60])
def test_forward_merge_and_gradients_are_the_equations(r, tokens):
    layer, x = linear(24, 20), batch(2, tokens, 24)
    W, bias = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.LoHa(r=r, alpha=3.0))
    assert a.dense == (3 * r * r * 44 >= 480)
    assert torch.equal(model(x), nn.functional.linear(x, W, bias))
    shake(model)
    expected = x @ (W + dense(a, 3.0)).T + bias
    torch.testing.assert_close(model(x), expected)
    ours = torch.autograd.grad(model(x).square().sum(), [a.A1, a.B1, a.A2, a.B2])
    torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), [a.A1, a.B1, a.A2, a.B2]))
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)


def test_the_gradient_of_the_delta_is_autograds():
    model, a = adapted(linear(7, 5), ad.LoHa(r=2, alpha=3.0))
    shake(model)
    G = batch(5, 7)
    factors = [a.A1, a.B1, a.A2, a.B2]
    torch.testing.assert_close(
        torch.autograd.grad((a.delta() * G).sum(), factors),
        torch.autograd.grad((dense(a, 3.0) * G).sum(), factors),
    )


def test_grouped_convolutions_and_embeddings():
    conv = nn.Conv2d(6, 8, (3, 2), stride=2, padding=1, groups=2)
    model, a = adapted(conv, ad.LoHa(r=2, alpha=3.0))
    shake(model)
    x = batch(2, 6, 7, 5)
    W = conv._parameters["weight"] + dense(a, 3.0).view(8, 3, 3, 2)
    expected = nn.functional.conv2d(x, W, conv.bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(model(x), expected)
    table = nn.Embedding(11, 6)
    model, a = adapted(table, ad.LoHa(r=2, alpha=3.0))
    shake(model)
    ids = torch.tensor([[3, 10, 0], [3, 3, 7]])
    torch.testing.assert_close(model(ids), (table._parameters["weight"] + dense(a, 3.0).T)[ids])


def test_it_is_pefts_on_the_same_weights():
    peft = pytest.importorskip("peft")
    base = nn.Sequential(linear(24, 20))
    theirs = peft.get_peft_model(
        nn.Sequential(linear(24, 20)), peft.LoHaConfig(r=3, alpha=6, target_modules=["0"], init_weights=False)
    )
    ad.attach(base, ad.LoHa(r=3, alpha=6.0), targets="0")
    for name, value in ad.parameters_of(base).items():
        part = {"A": "b", "B": "a"}[name[2]]
        value.data.copy_(theirs.get_parameter(f"base_model.model.0.hada_w{name[3]}_{part}.default"))
    x = batch(5, 24).float()
    torch.testing.assert_close(base(x), theirs(x))


def test_the_dense_form_keeps_no_matrix_for_the_backward():
    model, a = adapted(linear(24, 20, bias=False), ad.LoHa(r=5))
    shake(model)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        model(batch(60, 24)).sum()
    base = a.host.stored("weight").data_ptr()
    assert a.dense and not [t for t in kept if t.shape == (20, 24) and t.data_ptr() != base]


def test_counts_are_the_papers():
    assert ad.plan(llama2_7b(), ad.LoHa(r=8), targets=["q", "v"]).trainable == 8_388_608


def test_the_rank_is_up_to_the_square_of_r():
    model, a = adapted(linear(24, 20), ad.LoHa(r=3))
    shake(model, 1.0)
    assert torch.linalg.matrix_rank(a.delta()) == 9
