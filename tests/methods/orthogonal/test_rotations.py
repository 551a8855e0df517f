"""OFT and BOFT against dense rotations and PEFT's (arXiv:2306.07280, 2311.06243)."""

import itertools

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MethodError
from adaptome.methods.orthogonal import boft
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake


def block_diagonal(upper, b):
    """diag(Cayley(Q_i)) from the entries above the diagonals."""
    blocks = []
    for entries in upper:
        Q = torch.zeros(b, b, dtype=upper.dtype)
        k = 0
        for i in range(b):
            for j in range(i + 1, b):
                Q = Q.index_put(
                    (torch.tensor([i, j]), torch.tensor([j, i])), torch.stack([entries[k], -entries[k]])
                )
                k += 1
        eye = torch.eye(b, dtype=upper.dtype)
        blocks.append((eye + Q) @ torch.linalg.inv(eye - Q))
    return torch.block_diag(*blocks)


def series_diagonal(upper, b, k):
    """diag((I + Q_i) sum of the powers of Q_i up to k)."""
    blocks = []
    for entries in upper:
        Q = torch.zeros(b, b, dtype=upper.dtype).index_put(tuple(torch.triu_indices(b, b, 1)), entries)
        Q = Q - Q.T
        blocks.append((torch.eye(b) + Q) @ sum(torch.linalg.matrix_power(Q, i) for i in range(k + 1)))
    return torch.block_diag(*blocks)


def rotation(a):
    """R [in, in] of an adapter, from the definition."""
    if a.Q.dim() == 2:
        upper = a.Q.expand(a.host.fan_in // a.b, -1)
        return series_diagonal(upper, a.b, a.series) if a.series else block_diagonal(upper, a.b)
    size = a.host.fan_in
    total = torch.eye(size, dtype=a.Q.dtype)
    for i in range(a.m):
        # half block h is joined with the one 2^i further, for every h whose i-th bit is 0
        halves = [h for h in range(2 * size // a.b) if not h >> i & 1]
        order = [
            k for h in halves for half in (h, h + 2**i) for k in range(half * a.b // 2, (half + 1) * a.b // 2)
        ]
        P = torch.eye(size, dtype=a.Q.dtype)[order] if i else torch.eye(size, dtype=a.Q.dtype)
        total = total @ P.T @ block_diagonal(a.Q[i], a.b) @ P
    return total


CASES = [
    ad.OFT(size=4), ad.OFT(size=3), ad.OFT(size=4, block_share=True), ad.OFT(size=3, series=3), ad.OFT(size=4, series=1, block_share=True), ad.BOFT(size=4, factors=1), ad.BOFT(size=4, factors=2, scale=True), ad.BOFT(size=2, factors=3),
]  # fmt: skip


@pytest.fixture(autouse=True, params=[64, 1], ids=["fused", "in-turn"])
def fused(request, monkeypatch):
    monkeypatch.setattr(boft, "FUSED", request.param)


def changed(a, W):
    WR = W @ rotation(a)
    return WR if getattr(a, "s", None) is None else a.s[:, None] * WR


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_merge_and_gradients_are_the_dense_rotations(method, bias):
    layer, x = linear(24, 20, bias), batch(2, 3, 24).requires_grad_()
    model, a = adapted(layer, method)
    W, b = layer._parameters["weight"], layer.bias
    torch.testing.assert_close(model(x), nn.functional.linear(x, W, b))
    shake(model)
    expected = nn.functional.linear(x, changed(a, W), b)
    torch.testing.assert_close(model(x), expected)
    wanted = [x, a.Q]
    torch.testing.assert_close(
        torch.autograd.grad(model(x).square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    )
    torch.testing.assert_close(model(x[0, 0]), expected[0, 0])
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("method", CASES)
def test_other_kinds_read_the_turned_weight(method):
    conv = nn.Conv1d(8, 6, 3)
    model, a = adapted(conv, method)
    shake(model)
    W = conv._parameters["weight"]
    x = batch(2, 8, 9)
    torch.testing.assert_close(
        model(x), nn.functional.conv1d(x, changed(a, W.flatten(1)).view(W.shape), conv.bias)
    )


@pytest.mark.parametrize("method", [case for case in CASES if not getattr(case, "series", 0)])
def test_rotations_are_orthogonal_and_keep_the_spectrum(method):
    model, a = adapted(linear(24, 20), method)
    shake(model, 1.0)
    R = a.rotated(torch.eye(24, dtype=torch.float64)).T
    torch.testing.assert_close(R.T @ R, torch.eye(24, dtype=torch.float64))
    assert not torch.allclose(R, torch.eye(24, dtype=torch.float64), atol=0.1)
    if getattr(a, "s", None) is None:
        W = a.host.weight()
        turned = a.weight(W)
        torch.testing.assert_close(turned @ turned.T, W @ W.T)
        torch.testing.assert_close(torch.linalg.svdvals(turned), torch.linalg.svdvals(W))


def test_butterfly_factors_mix_everything_once_they_are_enough():
    for factors, width in ((1, 4), (2, 8), (3, 16)):
        model, a = adapted(linear(16, 5), ad.BOFT(size=4, factors=factors))
        shake(model, 1.0)
        R = a.rotated(torch.eye(16, dtype=torch.float64)).T
        assert int((R.abs() > 1e-9).sum(1).max()) == width
        assert torch.linalg.det(R).item() == pytest.approx(1.0)


def test_oft_keeps_its_input_alone_for_the_backward():
    model, a = adapted(linear(24, 20), ad.OFT(size=4))
    kept, x = [], batch(50, 24)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        model(x).sum()
    assert {t.data_ptr() for t in kept if t.numel() >= 50 * 20 and t.dim() == 2 and t.shape[0] == 50} <= {
        x.data_ptr()
    }


def test_blocks_that_do_not_fill_the_inputs_are_refused():
    with pytest.raises(HostError, match="size = 32 does not divide its 12 inputs; the nearest divisor is 12"):
        ad.attach(nn.Sequential(linear()), "oft", size=32, targets="0")
    with pytest.raises(HostError, match=r"size \* 2\^\(factors - 1\) = 8 does not divide its 12"):
        ad.attach(nn.Sequential(linear()), "boft", size=4, factors=2, targets="0")
    with pytest.raises(MethodError, match="size = 3 is odd"):
        ad.BOFT(size=3, factors=2)


def test_oft_is_pefts_on_the_same_weights():
    peft = pytest.importorskip("peft")
    config = peft.OFTConfig(r=0, oft_block_size=4, target_modules=["0"], use_cayley_neumann=False)
    theirs = peft.get_peft_model(nn.Sequential(linear(24, 20)), config)
    ours = nn.Sequential(linear(24, 20))
    ad.attach(ours, ad.OFT(size=4), targets="0")
    value = theirs.get_parameter("base_model.model.0.oft_R.default.weight")
    nn.init.normal_(value, std=0.3)
    ad.parameters_of(ours)["0.Q"].data.copy_(value)
    x = batch(5, 24).float()
    torch.testing.assert_close(ours(x), theirs(x))


def test_boft_is_pefts_on_the_same_weights():
    # its own kernels alone give PEFT more than one factor
    peft = pytest.importorskip("peft")
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(linear(24, 20)), config)
    ours = nn.Sequential(linear(24, 20))
    ad.attach(ours, ad.BOFT(size=4, factors=1, scale=True), targets="0")
    R = theirs.get_parameter("base_model.model.0.boft_R.default")
    s = theirs.get_parameter("base_model.model.0.boft_s.default")
    nn.init.normal_(R, std=0.3), nn.init.normal_(s)
    skew = (0.5 * (R - R.mT)).detach()
    rows, columns = torch.triu_indices(4, 4, 1)
    own = ad.parameters_of(ours)
    own["0.Q"].data.copy_(skew[..., rows, columns])
    own["0.s"].data.copy_(s.flatten())
    x = batch(5, 24).float()
    torch.testing.assert_close(ours(x), theirs(x))


def test_counts_are_the_papers():
    model = llama2_7b()
    assert ad.plan(model, ad.OFT(size=32), targets=["q", "v"]).trainable == 4_063_232
    assert ad.plan(model, ad.BOFT(size=4), targets=["q", "v"]).trainable == 786_432
    assert ad.plan(model, ad.BOFT(size=4, scale=True), targets=["q", "v"]).trainable == 1_048_576


def test_the_series_nears_the_rotation():
    model, a = adapted(linear(), ad.OFT(size=4))
    with torch.no_grad():
        a.Q.copy_(0.1 * torch.randn(a.Q.shape, generator=torch.Generator().manual_seed(0)))
    exact, errors = rotation(a), []
    for k in (1, 2, 3, 6):
        other, b = adapted(linear(), ad.OFT(size=4, series=k))
        ad.set_state(other, "default", {"0": {"Q": a.Q}})
        errors.append(float((b.weight(torch.eye(12, dtype=torch.float64)) - exact).norm() / exact.norm()))
    assert errors[0] < 0.1 and all(b < 0.5 * a for a, b in itertools.pairwise(errors))


def test_a_shared_rotation_counts_once():
    assert ad.plan(nn.Linear(64, 8), ad.OFT(size=16, block_share=True), targets="=").trainable == 120
