"""RandLoRA against the sum it stands for (arXiv:2502.00987)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.methods.low_rank.randlora import _Scaled
from tests.methods.helpers import adapted, batch, linear, llama3_8b, llama32_3b, roberta, shake


def explicit(a, s):
    """s sum_j B_j diag(l_j) A diag(g_j), [out, in]."""
    A, B = a.shared.A.double(), a.shared.B.double()
    total = sum(
        B[: a.M, j] @ torch.diag(a.lambda_[j]) @ A[:, : a.m] @ torch.diag(a.gamma[j]) for j in range(a.n)
    )
    return s * (total if a.host.fan_in == a.m else total.T)


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize(("fan_in", "fan_out"), [(12, 20), (20, 12), (16, 16), (13, 7)])
def test_forward_is_the_explicit_sum(fan_in, fan_out, form):
    layer, x = linear(fan_in, fan_out), batch(3, 5, fan_in)
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.RandLoRA(r=4, alpha=2.0, form=form))
    assert torch.equal(model(x), nn.functional.linear(x, W, b))
    shake(model, 0.5)
    torch.testing.assert_close(model(x), x @ (W + explicit(a, 0.5)).T + b, rtol=1e-6, atol=1e-6)


def test_the_update_has_full_rank():
    model, a = adapted(linear(96, 64), ad.RandLoRA(r=8))
    shake(model)
    assert torch.linalg.matrix_rank(a.delta()) == 64
    model, a = adapted(linear(96, 64), ad.RandLoRA(r=32, bases="sparse"))
    shake(model)
    assert torch.linalg.matrix_rank(a.delta()) == 64


def test_a_share_of_the_bases_has_that_share_of_the_rank():
    model, a = adapted(linear(96, 64), ad.RandLoRA(r=8, share=0.5))
    shake(model)
    assert torch.linalg.matrix_rank(a.delta()) == 32 and sum(p.numel() for p in a.parameters()) == 4 * (
        8 + 64
    )
    torch.testing.assert_close(a.delta(), explicit(a, 20.0), rtol=1e-6, atol=1e-6)
    model, b = adapted(linear(96, 64), "lora", r=8)
    shake(model)
    assert torch.linalg.matrix_rank(b.delta()) == 8


def test_the_scaling_saves_only_its_arguments():
    A, l, g = batch(3, 11), batch(4, 3).requires_grad_(), batch(4, 11).requires_grad_()
    assert torch.autograd.gradcheck(lambda l, g: _Scaled.apply(A, l, g), (l, g))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        _Scaled.apply(A, l, g).sum()
    assert max(sizes) == 4 * 11


def test_bases_are_shared_seeded_and_not_stored(tmp_path):
    model = nn.Sequential(linear(), nn.Linear(20, 8)).double()
    ad.attach(model, ad.RandLoRA(r=4), targets=["0", "1"])
    first, second = ad.adapters(model)["default"].adapters.values()
    assert first.shared is second.shared and first.shared.A.data_ptr() == second.shared.A.data_ptr()
    assert set(ad.parameters_of(model)) == {"0.lambda_", "0.gamma", "1.lambda_", "1.gamma"}
    shake(model)
    ad.save(model, tmp_path / "out")
    expected = model(batch(4, 12))
    ad.detach(model)
    ad.load(model, tmp_path / "out")
    assert torch.equal(model(batch(4, 12)), expected)


def test_ternary_bases_have_three_values_and_unit_variance():
    model, a = adapted(linear(120, 90), ad.RandLoRA(r=8, bases="sparse"))
    for base in (a.shared.A, a.shared.B):
        assert len(base.unique()) == 3 and abs(float(base.std()) - 1) < 1e-5
    assert abs(float((a.shared.B == 0).float().mean()) - 2 / 3) < 0.02


def test_first_gradient_is_lambdas():
    model, a = adapted(linear(), ad.RandLoRA(r=4))
    model(batch(4, 12)).sum().backward()
    assert a.lambda_.grad.abs().sum() > 0 and a.gamma.grad.abs().sum() == 0


FIVE = ["q", "k", "v", "up", "down"]


@pytest.mark.parametrize(
    ("make", "targets", "r", "count"),
    [
        (roberta, "all-linear", 64, 718_848),
        (lambda: roberta("large"), "all-linear", 100, 1_780_416),
        (llama3_8b, FIVE, 60, 28_778_112),
        (llama3_8b, FIVE, 30, 56_626_112),
        (llama3_8b, FIVE, 15, 112_723_968),
        (llama32_3b, ["q", "v"], 32, 9_289_728),
    ],
)
def test_counts_are_the_papers(make, targets, r, count):
    assert ad.plan(make(), ad.RandLoRA(r=r), targets=targets).trainable == count


@pytest.mark.parametrize(("fan_in", "fan_out"), [(12, 20), (13, 7)])
def test_pefts_pairs(fan_in, fan_out):
    """B's columns lie by basis, A's rows by rank, and column and row of one number meet."""
    _, a = adapted(linear(fan_in, fan_out), ad.RandLoRA(r=5, alpha=2.0, pairs="peft"))
    with torch.no_grad():
        a.lambda_.normal_()
    A, B = a.shared.A.double(), a.shared.B.double()[: a.M, : a.n]
    rows = [a.lambda_[j, k] * A[k, : a.m] * a.gamma[j] for k in range(5) for j in range(a.n)]
    columns = [B[:, j, k] for j in range(a.n) for k in range(5)]
    total = 0.4 * sum(torch.outer(column, row) for column, row in zip(columns, rows, strict=True))
    torch.testing.assert_close(a.delta(), total if fan_in == a.m else total.T, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(a.delta(), explicit(a, 0.4), atol=1e-2)
