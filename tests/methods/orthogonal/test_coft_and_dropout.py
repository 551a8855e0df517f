"""OFT's bound on its blocks, and the multiplicative dropout of OFT and BOFT."""

import itertools

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.methods.orthogonal import boft
from tests.methods.helpers import adapted, batch, linear, shake

EYE = torch.eye(12, dtype=torch.float64)


def skews(upper, b):
    Q = torch.zeros(*upper.shape[:-1], b, b, dtype=upper.dtype)
    rows, columns = torch.triu_indices(b, b, 1)
    Q[..., rows, columns] = upper
    return Q - Q.mT


def turns(Q):
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    return (eye + Q) @ torch.linalg.inv(eye - Q)


@pytest.mark.parametrize("share", [False, True])
def test_no_block_is_turned_further_than_the_bound(share):
    model, a = adapted(linear(), ad.OFT(size=4, coft=True, eps=0.5, block_share=share))
    with torch.no_grad():
        a.Q.copy_(torch.randn(a.Q.shape, generator=torch.Generator().manual_seed(0)))
        a.Q[0] *= 0.01  # one that stays
    before, bound = a.Q.detach().clone(), 0.5 if share else 0.5 / 3**0.5
    cut = torch.stack([Q if Q.norm() <= bound else Q * bound / Q.norm() for Q in skews(before, 4)])
    R = torch.block_diag(*turns(cut).expand(3, 4, 4))
    torch.testing.assert_close(model(EYE) - model(0 * EYE), (a.host.weight() @ R).T)
    torch.testing.assert_close(a.weight(a.host.weight()), a.host.weight() @ R)
    assert torch.equal(a.Q, before)  # looked at, not trained
    ad.merge(model)
    torch.testing.assert_close(model(EYE) - model(0 * EYE), (a.host.weight() @ R).T)


def test_training_is_projected_gradient_descent_as_in_peft():
    peft = pytest.importorskip("peft")
    config = peft.OFTConfig(
        oft_block_size=4, target_modules=["0"], coft=True, eps=0.1, use_cayley_neumann=False
    )
    theirs = peft.get_peft_model(nn.Sequential(linear()), config).train()
    ours = nn.Sequential(linear()).train()
    ad.attach(ours, ad.OFT(size=4, coft=True, eps=0.1), targets="0")
    x, target = batch(30, 12).float(), batch(30, 20).float()
    for model in (theirs, ours):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
        for _ in range(8):
            nn.functional.mse_loss(model(x), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    value = theirs.get_parameter("base_model.model.0.oft_R.default.weight")
    assert (2**0.5 * value.norm(dim=-1) > 0.1 / 3**0.5).any()  # the last step left the ball
    torch.testing.assert_close(ad.parameters_of(ours)["0.Q"], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_bound_runs_under_checkpointing_and_compiled(reentrant):
    gradients = []
    for how in ("plain", "checkpointed", "compiled"):
        model, a = adapted(linear(), ad.OFT(size=4, coft=True, eps=0.2))
        shake(model, 1.0)
        model.train()
        x = batch(5, 12).requires_grad_()
        if how == "checkpointed":
            y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        else:
            y = (torch.compile(model, backend="aot_eager") if how == "compiled" else model)(x)
        y.square().sum().backward()
        gradients.append((a.Q.grad, a.Q.detach()))
    for own in gradients[1:]:
        torch.testing.assert_close(own, gradients[0])


def identities(R, b):
    """Which blocks of a block-diagonal matrix are the identity."""
    blocks = [R[i : i + b, i : i + b] for i in range(0, len(R), b)]
    return [torch.allclose(block, torch.eye(b, dtype=R.dtype)) for block in blocks]


@pytest.mark.parametrize("share", [False, True])
def test_dropout_leaves_a_share_of_the_blocks_unturned(share):
    model, a = adapted(linear(), ad.OFT(size=2, dropout=0.5, block_share=share))
    shake(model)
    whole = a.rotated(EYE).T
    model.train()
    seen = set()
    for _ in range(40):
        R = a.rotated(EYE).T
        out = identities(R, 2)
        assert sum(out) == 3
        keep = ~torch.tensor(out).repeat_interleave(2)
        torch.testing.assert_close(R, torch.where(keep[:, None], whole, EYE))
        seen.add(tuple(out))
    assert len(seen) > 10
    torch.testing.assert_close(a.weight(EYE), whole)  # what is merged and exported
    ad.merge(model)
    torch.testing.assert_close(model(EYE), EYE @ a.weight(a.host.weight()).T + a.host.layer.bias)


def test_its_mean_is_the_setting_where_no_whole_number_of_blocks_is():
    model, a = adapted(linear(), ad.OFT(size=4, dropout=0.2))
    shake(model)
    model.train()
    torch.manual_seed(0)
    counts = [sum(identities(a.rotated(EYE).T, 4)) for _ in range(400)]
    assert set(counts) == {0, 1} and sum(counts) / 1200 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("fused", [64, 1])
def test_boft_drops_in_one_factor(fused, monkeypatch):
    monkeypatch.setattr(boft, "FUSED", fused)
    model, a = adapted(linear(16), ad.BOFT(size=4, factors=2, dropout=0.5))
    shake(model)
    model.train()
    eye, blocks = torch.eye(16, dtype=torch.float64), turns(skews(a.Q.detach(), 4))
    P = eye[[k for h in (0, 1, 4, 5) for half in (h, h + 2) for k in range(2 * half, 2 * half + 2)]]
    possible = []
    for factor, gone in itertools.product(range(2), itertools.combinations(range(4), 2)):
        own = blocks.clone()
        own[factor, list(gone)] = torch.eye(4, dtype=torch.float64)
        first, second = (torch.block_diag(*own[i]) for i in range(2))
        possible.append(first @ P.T @ second @ P)
    met = set()
    for _ in range(60):
        R = a.rotated(eye).T
        near = [i for i, one in enumerate(possible) if torch.allclose(R, one)]
        assert len(near) == 1
        met.add(near[0])
    assert len(met) >= 9


def test_the_weight_of_a_layer_in_training_is_whole():
    model, a = adapted(linear(), ad.OFT(size=2, dropout=0.5))
    shake(model)
    W = ad.weight_of(model.train(), "0")
    torch.testing.assert_close(W, a.weight(a.host.weight()))
