"""Soft and dense mixtures of adapters (arXiv:2402.00828), expert by expert."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from tests.methods.bottleneck.models import Sublayer
from tests.methods.helpers import batch, shake

D, B = 12, 3


def adapted(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(Sublayer(D)).double().eval()
    ad.attach(model, "soft-moa", targets="0", size=B, seed=0, **settings)
    a = ad.adapters(model)["default"].adapters["0"]
    x = batch(2, 7, D)
    assert torch.equal(model(x), model[0].map(x))
    shake(model)
    return model, a, x


def expert(a, e, h):
    return F.gelu(h @ a.D[e].T + a.d[e]) @ a.U[e].T + a.u[e]


@pytest.mark.parametrize(("n", "p"), [(1, 1), (3, 1), (3, 2)])
def test_soft_routing_is_its_equation(n, p):
    model, a, x = adapted(adapters=n, slots=p, scale=0.5)
    logits = x @ a.P
    dispatch, combine = logits.exp() / logits.exp().sum(1, keepdim=True), logits.exp() / logits.exp().sum(2, keepdim=True)  # fmt: skip
    out = torch.zeros_like(x)
    for e in range(n):
        for s in range(e * p, (e + 1) * p):
            slot = (dispatch[:, :, s, None] * x).sum(1)
            out += combine[:, :, s, None] * expert(a, e, slot)[:, None]
    torch.testing.assert_close(model(x), model[0].map(x) + 0.5 * out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [1, 4])
def test_dense_routing_is_its_equation(n):
    model, a, x = adapted(adapters=n, routing="dense")
    gate = (x @ a.R.T + a.r).softmax(-1)
    out = sum(gate[..., e, None] * expert(a, e, x) for e in range(n))
    torch.testing.assert_close(model(x), model[0].map(x) + out, rtol=1e-10, atol=1e-10)


def test_weights_sum_to_one_and_one_slot_gives_all_tokens_the_same():
    _, a, x = adapted(adapters=3, slots=2)
    dispatch, combine = a.weights(x)
    assert dispatch.shape == combine.shape == (2, 7, 6)
    torch.testing.assert_close(dispatch.sum(1), torch.ones(2, 6, dtype=x.dtype))
    torch.testing.assert_close(combine.sum(2), torch.ones(2, 7, dtype=x.dtype))
    _, a, x = adapted(adapters=1, slots=1)
    y = a.network(x)
    torch.testing.assert_close(y, y[:, :1].expand_as(y))
    assert not torch.allclose(y[0], y[1])
