"""EVA, CorDA and LoftQ: starts of LoRA from data and from what quantisation lost (arXiv:2410.07170, 2406.05223, 2310.08659)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import DataError, HostError, MethodError
from tests.methods.helpers import batch, shake


class Block(nn.Module):
    """Two layers with one input, and one after them."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = nn.Linear(12, 20), nn.Linear(12, 8), nn.Linear(20, 6, bias=False)

    def forward(self, x, attention_mask=None):
        return self.o(torch.tanh(self.q(x)) * self.k(x).sum(-1, keepdim=True))


def fresh():
    torch.manual_seed(0)
    return Block().double().eval()


def data(count=3, tokens=5):
    """Batches whose inputs vary most in few directions."""
    spread = torch.logspace(0, -2, 12, dtype=torch.float64)
    turned = torch.linalg.qr(batch(12, 12)).Q
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(4, tokens, 12, generator=generator, dtype=torch.float64) * spread @ turned
        for _ in range(count)
    ]


LAYERS = ("q", "k", "o")


def inputs(model, batches):
    """What every layer is given, computed by hand."""
    X = torch.cat([b.flatten(0, 1) for b in batches])
    q, k = (X @ layer.weight.T + layer.bias for layer in (model.q, model.k))
    return {"q": X, "k": X, "o": (torch.tanh(q) * k.sum(-1, keepdim=True)).detach()}


def adapters_of(model):
    return ad.adapters(model)["default"].adapters


def test_eva_starts_along_the_inputs_singular_vectors_and_as_the_base():
    model, batches = fresh(), data()
    X, y = inputs(model, batches), model(batches[0])
    plan = ad.eva(model, batches, ad.LoRA(r=4, alpha=6.0), targets=LAYERS, rho=2.5)
    assert torch.equal(model(batches[0]), y)
    assert plan.trainable == ad.trainable(model).count
    for name, a in adapters_of(model).items():
        V = torch.linalg.svd(X[name], full_matrices=False).Vh[: len(a.A)]
        signs = (a.A.double() * V).sum(1, keepdim=True).sign()
        torch.testing.assert_close(a.A.double(), signs * V, atol=2e-6, rtol=0)
        assert not a.B.any() and a.scale == pytest.approx(1.5)


@pytest.mark.parametrize(("rho", "rslora"), [(1.0, False), (2.0, False), (3.0, True)])
def test_eva_gives_ranks_to_the_directions_that_explain_most(rho, rslora):
    model = fresh()
    batches = [b * 0.01 + 3 * b[..., :1] for b in data()]  # nearly one direction, which tanh bends into more
    X = inputs(model, batches)
    ad.eva(model, batches, ad.LoRA(r=2, alpha=6.0, rslora=rslora), targets=LAYERS, rho=rho)
    shares = []
    for name in LAYERS:
        S = torch.linalg.svdvals(X[name])
        shares += [(float(s**2 / S.square().sum()), name) for s in S[: int(2 * rho)]]
    best = [name for _, name in sorted(shares, reverse=True)[:6]]
    ranks = {name: len(a.A) for name, a in adapters_of(model).items()}
    assert ranks == {name: best.count(name) for name in LAYERS if name in best}
    assert sum(ranks.values()) == 6 and (rho == 1.0) == (set(ranks.values()) == {2})
    assert {round(a.scale, 9) for a in adapters_of(model).values()} == {
        round(6 / (2**0.5 if rslora else 2), 9)
    }


def test_eva_sees_batch_by_batch_what_it_would_see_at_once_and_equal_inputs_once(monkeypatch):
    batches = data(count=6, tokens=10)
    low = [b @ torch.linalg.qr(batch(12, 12)).Q[:, :3] @ batch(3, 12) for b in batches]  # 3 directions in all
    calls, svd = [], torch.linalg.svd
    model = fresh()
    monkeypatch.setattr(torch.linalg, "svd", lambda x, **how: calls.append(x.shape) or svd(x, **how))
    ad.eva(model, low, ad.LoRA(r=2), targets=["q", "k"])
    assert len(calls) == 6 and max(rows for rows, _ in calls) == 40 + 4
    V = svd(torch.cat([b.flatten(0, 1) for b in low]), full_matrices=False).Vh[:2]
    for a in adapters_of(model).values():
        torch.testing.assert_close(
            (a.A.double() @ V.T).abs(), torch.eye(2, dtype=torch.float64), atol=1e-5, rtol=0
        )


def test_hidden_tokens_are_left_out():
    x, mask = data(1)[0], torch.ones(4, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    wild = x.clone()
    wild[:, 3:] *= 1e3
    found = []
    for batches in ([{"x": wild, "attention_mask": mask}], [x[:, :3]]):
        model = fresh()
        ad.eva(model, batches, ad.LoRA(r=3), targets=["q"])
        found.append(adapters_of(model)["q"].A.double().abs())
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["instruction", "knowledge"])
def test_corda_cuts_the_weight_along_the_covariance_and_starts_as_the_base(mode):
    model, batches, r = fresh(), data(), 3
    X, y = inputs(model, batches), model(batches[0])
    ad.corda(model, batches, ad.LoRA(r=r, alpha=6.0), targets=LAYERS, mode=mode)
    torch.testing.assert_close(model(batches[0]), y, atol=1e-6, rtol=0)
    for name, a in adapters_of(model).items():
        W = a.host.weight()
        C = X[name].T @ X[name]
        C = C / C.diagonal().mean() + 0.01 * torch.eye(len(C), dtype=C.dtype)
        U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
        torch.testing.assert_close(
            U @ torch.diag(S) @ Vh @ torch.linalg.inv(C), W
        )  # all components give W back
        part = slice(r) if mode == "instruction" else slice(len(S) - r, len(S))
        expected = U[:, part] @ torch.diag(S[part]) @ Vh[part] @ torch.linalg.inv(C)
        torch.testing.assert_close((2 * a.B @ a.A).double(), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(a.A, a.A0) and torch.equal(a.B, a.B0)
        if mode == "instruction":  # what is left does less to these inputs than PiSSA's residual
            S0 = torch.linalg.svd(W, full_matrices=False)
            pissa = S0.U[:, :r] @ torch.diag(S0.S[:r]) @ S0.Vh[:r]
            assert ((W - expected) @ C).norm() < ((W - pissa) @ C).norm()


def test_corda_is_saved_whole_merges_and_exports(tmp_path):
    model, batches = fresh(), data()
    ad.corda(model, batches, ad.LoRA(r=2), targets=LAYERS)
    shake(model)
    y = model(batches[0])
    ad.save(model, tmp_path / "a")
    other = fresh()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(batches[0]), y)
    report = ad.export(model, tmp_path / "peft")
    assert report.worst == 0 and report.rank == 4
    peft = fresh()
    ad.load(peft, tmp_path / "peft")
    torch.testing.assert_close(peft(batches[0]), y, atol=1e-5, rtol=1e-5)
    ad.merge(model)
    torch.testing.assert_close(model(batches[0]), y)


def test_corda_without_data_is_pissa():
    one, two = fresh(), fresh()
    ad.attach(one, ad.LoRA(r=2, init="corda"), targets=LAYERS)
    ad.attach(two, ad.LoRA(r=2, init="pissa"), targets=LAYERS)
    ours, theirs = ad.parameters_of(one), ad.parameters_of(two)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def quantised(model):
    """Its q and o in nf4."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    for name in ("q", "o"):
        old = model.get_submodule(name)
        new = bnb.nn.Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            quant_type="nf4",
            compress_statistics=False,
        )
        new.load_state_dict(old.state_dict())
        model.add_module(name, new.to("cpu"))
    return model


def test_eva_starts_on_a_quantised_base_too():
    model, batches = quantised(fresh().float()), [b.float() for b in data()]
    y = model(batches[0])
    ad.eva(model, batches, ad.LoRA(r=2), targets=["q", "o"])
    assert torch.equal(model(batches[0]), y)
    V = torch.linalg.svd(torch.cat(batches).flatten(0, 1), full_matrices=False).Vh[:2]
    torch.testing.assert_close((adapters_of(model)["q"].A @ V.T).abs(), torch.eye(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_loftq_alternates_between_quantising_and_the_leading_part(steps):
    full = fresh().float()
    model, r = quantised(fresh().float()), 2
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    before = {n: model.get_submodule(n)._parameters["weight"].detach().clone() for n in ("q", "o")}
    ad.loftq(model, full, ad.LoRA(r=r, alpha=6.0), targets=["q", "o"], steps=steps)
    nearer = []
    for name, a in adapters_of(model).items():
        W = full.get_submodule(name).weight.detach()
        AB = torch.zeros_like(W)
        for _ in range(steps):
            Q = dequantize_4bit(*quantize_4bit(W - AB, quant_type="nf4"))
            U, S, Vh = torch.linalg.svd(W - Q, full_matrices=False)
            AB = U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]
        torch.testing.assert_close(a.host.weight(), Q, atol=1e-6, rtol=0)
        torch.testing.assert_close(3 * a.B @ a.A, AB, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.A.norm(dim=1), a.B.norm(dim=0))
        plain = dequantize_4bit(*quantize_4bit(W, quant_type="nf4"))
        nearer.append(float((W - Q - AB).norm() / (W - plain).norm()))
        unchanged = torch.equal(model.get_submodule(name)._parameters["weight"], before[name])
        assert unchanged == (steps == 1)
    assert max(nearer) < 0.95


def test_loftq_is_saved_for_the_base_that_it_leaves(tmp_path):
    full, x = fresh().float(), data(1)[0].float()
    model = quantised(fresh().float())
    ad.loftq(model, full.state_dict(), ad.LoRA(r=2), targets=["q", "o"])
    base = (full(x) - quantised(fresh().float())(x)).norm()
    assert (full(x) - model(x)).norm() < base
    ad.save(model, tmp_path / "a")
    other = quantised(fresh().float())
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(x), model(x))


def test_what_does_not_fit_is_refused():
    conv = nn.Sequential(nn.Conv1d(4, 6, 3))
    cases = [
        (lambda: ad.eva(fresh(), data(), ad.LoRA(init="pissa"), LAYERS), MethodError, "without init"),
        (lambda: ad.eva(fresh(), data(), ad.LoRA(r=2), LAYERS, rho=0.5), MethodError, "rho = 0.5"),
        (lambda: ad.eva(fresh(), [], ad.LoRA(r=2), LAYERS), DataError, "0 of 3 layers; q saw no input"),
        (lambda: ad.eva(fresh(), data(1, 1), ad.LoRA(r=5), ["q"]), DataError, "hold 4 directions and r is 5"),
        (lambda: ad.eva(conv, [batch(1, 4, 9)], ad.LoRA(r=2), "0"), HostError, "0 is a conv"),
        (lambda: ad.corda(fresh(), data(), ad.LoRA(r=7), LAYERS), MethodError, "above the rank of o, 6"),
        (lambda: ad.corda(fresh(), data(), ad.LoRA(r=2), LAYERS, mode="both"), MethodError, "'instruction' or"),
        (lambda: ad.corda(fresh(), [batch(2, 12) * float("inf")], ad.LoRA(r=2), ["q"]), DataError, "NaN or inf"),
        (lambda: ad.loftq(fresh(), fresh(), ad.LoRA(r=2), LAYERS), HostError, "q is not quantised"),
        (lambda: ad.loftq(fresh(), fresh(), ad.LoRA(r=2), LAYERS, steps=0), MethodError, "steps = 0"),
    ]  # fmt: skip
    for make, error, words in cases:
        with pytest.raises(error, match=words):
            make()
    model = quantised(fresh().float())
    for full, words in (
        ({}, "hold no 'q.weight'"),
        ({"q.weight": torch.zeros(3, 3)}, r"\[3, 3\] in full precision"),
    ):
        with pytest.raises(DataError, match=words):
            ad.loftq(model, full, ad.LoRA(r=2), targets=["q"])
    assert not ad.adapters(model)
