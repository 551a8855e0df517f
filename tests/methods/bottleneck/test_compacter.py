"""Compacter (arXiv:2106.04647): sums of Kronecker products, formed here and never there."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.forms.hypercomplex import phm
from tests.methods.bottleneck.models import family, inputs, run
from tests.methods.helpers import batch, shake


def dense(A, S, T):
    """sum_k A_k (x) (S_k^T T_k)."""
    return sum(torch.kron(a, s.T @ t) for a, s, t in zip(A, S, T, strict=True))


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 1), (4, 1), (4, 3), (3, 2)])
def test_the_product_is_that_of_the_sum_and_so_are_its_gradients(n, rank):
    torch.manual_seed(0)
    x = batch(2, 5, 4 * n).requires_grad_(True)
    A, S, T = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((n, n, n), (n, rank, 3), (n, rank, 4))
    )
    found, wanted = phm(x, A, S, T), x @ dense(A, S, T).T
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    push = batch(2, 5, 3 * n)
    for a, b in zip(
        torch.autograd.grad(found, (x, A, S, T), push), torch.autograd.grad(wanted, (x, A, S, T), push), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_its_equation_with_one_rule_for_all_layers(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8)).double()
    base = [m.weight.detach().clone() for m in (model[0], model[2])]
    ad.attach(model, "compacter", targets=["0", "2"], size=4, rank=rank, seed=1)
    shake(model)
    A = ad.parameters_of(model)["shared.A"].detach()
    x = batch(3, 12)
    y = x
    for path, W in zip(("0", "2"), base, strict=True):
        t = {k: v.detach() for k, v in ad.adapters(model)["default"].adapters[path].named_parameters()}
        layer = model.get_submodule(path)
        z = y @ W.T + layer.bias
        inner = F.gelu(z @ dense(A, t["S"], t["T"]).T + t["d"])
        y = z + inner @ dense(A, t["S_up"], t["T_up"]).T + t["u"]
        y = torch.tanh(y) if path == "0" else y
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)


def test_its_rule_is_saved_once_and_loads_bit_for_bit(tmp_path):
    model, other = family("bert"), family("bert")
    ad.attach(model, "compacter", size=4)
    shake(model)
    assert [k for k in ad.parameters_of(model) if k.endswith(".A")] == ["shared.A"]
    ad.save(model, tmp_path / "a")
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, "bert"), run(model, "bert"))


def test_it_starts_as_the_base_at_the_scale_of_kaiming_or_as_the_paper_near_it():
    layer = nn.Sequential(nn.Linear(6, 768, bias=False))
    stds = []
    for seed in range(20):
        if seed:
            ad.detach(layer)
        ad.attach(layer, "compacter", targets="0", size=96, seed=seed)
        a, A = ad.adapters(layer)["default"].adapters["0"], ad.parameters_of(layer)["shared.A"]
        stds.append(dense(A, a.S, a.T).square().mean().item())
    assert sum(stds) / 20 == pytest.approx(1 / (3 * 768), rel=0.3)
    assert not a.S_up.any()
    ad.detach(layer)
    ad.attach(layer, "compacter", targets="0", size=96, init="paper", seed=0)
    a, A = ad.adapters(layer)["default"].adapters["0"], ad.parameters_of(layer)["shared.A"]
    assert abs(float(A.detach().std()) - 0.01) < 0.004 and a.S_up.any()


def test_gradients_reach_the_rule_after_a_step():
    model = family("bert").train()
    ad.attach(model, "compacter", size=4, seed=0)
    for _ in range(2):
        model(**inputs("bert")).last_hidden_state.square().sum().backward()
        found = {k: p.grad for k, p in ad.parameters_of(model).items()}
        with torch.no_grad():
            for p in ad.parameters_of(model).values():
                p.sub_(1e-3 * p.grad)
    assert all(g.any() for g in found.values())
