"""LoLDU: pivots of the LDU factorisation (arXiv:2410.13618)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.architectures import build
from adaptome.core.errors import HostError
from adaptome.methods.spectral.loldu import ldu, started
from tests.methods.helpers import adapted, batch, linear, llama2_7b, roberta, shake

SHAPES = [(12, 20), (20, 12), (16, 16)]


@pytest.mark.parametrize(("fan_in", "fan_out"), SHAPES)
def test_the_factors_give_the_weight_back(fan_in, fan_out):
    W = batch(fan_out, fan_in)
    PL, D, U = ldu(W)
    torch.testing.assert_close(PL @ torch.diag(D) @ U, W)
    ones = torch.ones_like(D)
    torch.testing.assert_close(U.diagonal(), ones)
    P = torch.linalg.lu(W)[0]
    L = P.T @ PL
    torch.testing.assert_close(L.diagonal(), ones)
    assert not L.triu(1).any() and not U.tril(-1).any()


def test_factors_of_many_matrices_are_those_of_each():
    W = batch(3, 20, 12)
    found = ldu(W)
    for i in range(3):
        torch.testing.assert_close(tuple(part[i] for part in found), ldu(W[i]))


def test_the_order_of_the_pivots_does_not_hang_on_rounding_in_float32():
    W = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    nearly = torch.tensor([[1.0, 0.3], [1.0 + 1e-12, 0.5]], dtype=torch.float64)  # a tie in float32
    PL, D, U = ldu(nearly)
    assert float(PL[0, 0]) == pytest.approx(1 - 1e-12, abs=1e-14) and float(PL[1, 0]) == 1.0
    for part, exact in zip(ldu(W), ldu(W.double()), strict=True):
        assert torch.equal(part, exact)


def test_neither_factorising_nor_running_makes_a_permutation_matrix():
    from torch.utils._python_dispatch import TorchDispatchMode

    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(
                t.numel()
                for t in (out if isinstance(out, (tuple, list)) else [out])
                if isinstance(t, torch.Tensor)
            )
            return out

    layer = linear(6, 90).double()
    with Watch():
        model, a = adapted(layer, ad.LoLDU(r=4))
        model(batch(5, 6)).sum().backward()
    assert a.z.grad.any() and max(made) < 90 * 90


@pytest.mark.parametrize(("fan_in", "fan_out"), SHAPES)
@pytest.mark.parametrize("r", [1, 5, 12])
@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("train_scale", [True, False])
def test_forward_merge_and_gradients_are_the_equation(fan_in, fan_out, r, alpha, train_scale):
    layer, x = linear(fan_in, fan_out), batch(2, 5, fan_in)
    model, a = adapted(layer, ad.LoLDU(r=r, alpha=alpha, train_scale=train_scale))
    W, bias = layer._parameters["weight"].detach(), layer.bias
    torch.testing.assert_close(model(x), nn.functional.linear(x, W, bias))
    shake(model)
    P, L, U = torch.linalg.lu(W)
    D = U.diagonal()
    sigma0 = 1.0 if alpha is None else alpha / r
    PL, Ur = (P @ L)[:, :r], torch.diag(1 / D[:r]) @ U[:r]
    residual = W - sigma0 * PL @ torch.diag(D[:r]) @ Ur
    sigma = a.sigma if train_scale else sigma0
    expected = nn.functional.linear(x, residual + sigma * PL @ torch.diag(a.z) @ Ur, bias)
    torch.testing.assert_close(model(x), expected)
    wanted = list(ad.parameters_of(model).values())
    assert len(wanted) == 1 + train_scale
    torch.testing.assert_close(
        torch.autograd.grad(model(x).square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    )
    with ad.disabled(model):
        torch.testing.assert_close(model(x), nn.functional.linear(x, W, bias))
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)
    ad.unmerge(model)
    assert torch.equal(layer._parameters["weight"], W)


@pytest.mark.parametrize(("fan_in", "fan_out"), SHAPES)
def test_without_the_trained_part_the_leading_rows_and_columns_vanish(fan_in, fan_out):
    model, a = adapted(linear(fan_in, fan_out), ad.LoLDU(r=4))
    W = a.host.weight()
    a.z.data.zero_()
    residual = torch.linalg.lu(W)[0].T @ (W + a.delta())
    assert residual[:4].abs().max() < 1e-6 and residual[:, :4].abs().max() < 1e-6
    assert residual.abs().max() > 1e-2


@pytest.mark.parametrize("init", ["uniform", "constant", "normal", "s_uniform", "s_normal", "ones", "zeros"])
def test_other_starts_are_what_they_say(init):
    model, a = adapted(linear(64, 64), ad.LoLDU(r=64, init=init))
    z, z0 = a.z.detach(), a.d0
    mean = z0.mean()
    assert {
        "uniform": z.abs().max() <= mean.abs() / 2 and z.std() > 0,
        "constant": torch.allclose(z, mean.expand(64)),
        "normal": abs(z.mean() - mean) < z0.std() and z.std() > 0.5 * z0.std(),
        "s_uniform": z.abs().max() <= 1 and z.abs().max() > 0.8,
        "s_normal": 0.7 < z.std() < 1.3,
        "ones": bool((z == 1).all()),
        "zeros": not z.any(),
    }[init]
    if init == "zeros":
        torch.testing.assert_close(model(batch(3, 64)), model[0].bias.expand(3, 64))


@pytest.mark.parametrize("init", ["uniform", "normal", "s_uniform", "s_normal"])
def test_a_start_is_drawn_by_the_seeded_generator_wherever_the_pivots_are(init):
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        started(torch.empty(3, 4, device="meta"), init)  # stands for an accelerator
        assert not torch.equal(torch.get_rng_state(), before)


def test_zero_pivots_stay_finite():
    layer = linear(12, 20)
    with torch.no_grad():
        layer.weight[3] = 0
        layer.weight[:, 5] = layer.weight[:, 4]
        layer.weight[7:] = layer.weight[6]
    W = layer.weight.detach().double()
    model, a = adapted(layer, ad.LoLDU(r=12))
    torch.testing.assert_close(model(batch(3, 12)), batch(3, 12) @ W.T + layer.bias)
    shake(model)
    assert torch.isfinite(model(batch(3, 12))).all() and torch.isfinite(a.delta()).all()


def test_half_precision_starts_as_the_base():
    model = nn.Sequential(linear()).bfloat16()
    x = batch(5, 12).bfloat16()
    before = model(x)
    ad.attach(model, ad.LoLDU(r=12), targets="0")
    assert torch.equal(model(x), before)


def test_the_file_holds_the_diagonal_alone(tmp_path):
    model, a = adapted(linear(64, 64), ad.LoLDU(r=32))
    shake(model)
    expected = model(batch(3, 64))
    ad.save(model, tmp_path / "a")
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < 8 * 33 + 1000
    ad.detach(model)
    ad.load(model, tmp_path / "a")
    assert torch.equal(model(batch(3, 64)), expected)


def test_more_pivots_than_there_are_is_refused():
    with pytest.raises(HostError, match="r = 64 is above its rank, 12"):
        ad.attach(nn.Sequential(linear()), "loldu", r=64, targets="0")


def test_it_is_built_from_shapes_alone():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(12, 20))
    ad.attach(model, ad.LoLDU(r=5), targets="0")
    assert ad.adapters(model)["default"].adapters["0"].L.shape == (20, 5)


def test_counts_are_the_papers():
    base, large = roberta(), llama2_7b()

    def count(model, **settings):
        return ad.plan(model, ad.LoLDU(**settings), targets=["q", "v"]).trainable

    assert count(base, r=768) == 18_456
    assert count(base, r=64, train_scale=False) == 1_536 and count(base, r=64) == 1_536 + 24
    # the appendix' rank; the table's 0.016 M is that of r = 256
    assert count(large, r=1024, train_scale=False) == 65_536 and count(large, r=1024) == 65_600
    assert count(large, r=256) == 16_384 + 64
    assert count(build("vit-b-16"), r=768) == 18_456
    unet = ad.plan(build("sd-1.5-unet"), ad.LoLDU(r=32), targets=["*to_q", "*to_k", "*to_v", "*to_out.0"])
    assert len(unet.entries) == 128 and unet.trainable == 4_096 + 128
