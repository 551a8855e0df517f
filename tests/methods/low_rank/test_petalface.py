"""PETALface: two branches mixed per sample (arXiv:2412.07771)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MergeError, StateError
from tests.methods.helpers import adapted, batch, linear, shake

FREE = dict(r=3, scale=0.7, clamp=False, dropout=0.0)


def dense(a, share):
    """The layer's weight at one share of the high branch."""
    low, high = a.B["low"] @ a.A["low"], a.B["high"] @ a.A["high"]
    return a.host.weight() + 0.7 * ((1 - share) * low + share * high)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, -2.0, 7.0])
def test_one_quality_is_one_weight(share):
    layer, x = linear(), batch(3, 5, 12)
    model, a = adapted(layer, ad.PETALface(**FREE, threshold=0.4))
    W = a.host.weight().clone()
    with ad.steer(quality=share - 0.1):  # a = 0.5 + (q - 0.4)
        assert torch.equal(model(x), layer.frozen_forward(x))
        shake(model)
        expected = x @ dense(a, share).T + layer.bias
        torch.testing.assert_close(model(x), expected)
        ad.merge(model)
        torch.testing.assert_close(model(x), expected)
    ad.unmerge(model)
    assert torch.equal(layer._parameters["weight"], W)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(12, 20), batch(4, 12)),
        (nn.Linear(12, 20), batch(4, 5, 12)),
        (nn.Conv2d(6, 10, 3), batch(4, 6, 5, 5)),
        (nn.Conv2d(6, 10, 3, groups=2), batch(4, 6, 5, 5)),
    ],
    ids=["rows", "tokens", "convolution", "groups"],
)
def test_a_mixed_batch_is_its_samples_run_singly(layer, x):
    model, _ = adapted(layer, ad.PETALface(**FREE))
    shake(model)
    scores = torch.tensor([0.1, 0.9, 0.5, 1.7])
    with ad.steer(quality=scores):
        together = model(x)
    for i, q in enumerate(scores.tolist()):
        with ad.steer(quality=q):
            torch.testing.assert_close(together[i], model(x[i : i + 1])[0], rtol=1e-6, atol=1e-6)


def test_a_samples_windows_share_its_score():
    model, a = adapted(linear(), ad.PETALface(**FREE))
    shake(model)
    windows = batch(8, 4, 12)  # four windows for each of two samples
    with ad.steer(quality=torch.tensor([0.2, 0.8])):
        y = model(windows)
    for rows, share in ((slice(0, 4), 0.2), (slice(4, 8), 0.8)):
        torch.testing.assert_close(
            y[rows], windows[rows] @ dense(a, share).T + a.host.layer.bias, rtol=1e-6, atol=1e-6
        )
    with ad.steer(quality=torch.ones(3)), pytest.raises(StateError, match="3 samples"):
        model(windows)


def test_it_runs_in_a_swin_with_windows():
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4
    )
    model, images = SwinModel(config).double().eval(), batch(3, 3, 32, 32)
    ad.attach(model, "petalface", r=2)
    shake(model)
    scores = torch.tensor([0.1, 0.6, 0.9])
    with ad.steer(quality=scores):
        together = model(images).last_hidden_state
    for i, q in enumerate(scores.tolist()):
        with ad.steer(quality=q):
            torch.testing.assert_close(
                together[i], model(images[i : i + 1]).last_hidden_state[0], rtol=1e-5, atol=1e-5
            )


def test_the_output_is_affine_in_the_share_and_equal_branches_ignore_it():
    x = batch(4, 12)
    model, a = adapted(linear(), ad.PETALface(**FREE))
    shake(model)

    def at(q):
        with ad.steer(quality=q):
            return model(x)

    torch.testing.assert_close(at(0.3), 0.7 * at(0.0) + 0.3 * at(1.0))
    with torch.no_grad():
        for pair in (a.A, a.B):
            pair["high"].copy_(pair["low"])
    torch.testing.assert_close(at(0.1), at(0.9))


def test_a_share_of_zero_gives_the_high_branch_no_gradient():
    model, a = adapted(linear(), ad.PETALface(**FREE))
    shake(model)
    with ad.steer(quality=torch.zeros(4)):
        model(batch(4, 12)).square().sum().backward()
    assert not a.A["high"].grad.any() and not a.B["high"].grad.any()
    assert a.A["low"].grad.any() and a.B["low"].grad.any()


def test_shares_follow_quality():
    scores = torch.tensor([-3.0, 0.1, 0.5, 0.9, 40.0])
    a = ad.PETALface(threshold=0.4).share(scores)
    torch.testing.assert_close(a, torch.tensor([0.0, 0.2, 0.6, 1.0, 1.0]))
    torch.testing.assert_close(ad.PETALface(clamp=False).share(scores), scores)
    falling = ad.PETALface(lower_is_better=True, threshold=30.0).share(torch.tensor([29.9, 30.2, 80.0]))
    torch.testing.assert_close(falling, torch.tensor([0.6, 0.3, 0.0]))
    assert ad.PETALface().share(2.0) == 1.0


def test_dropout_is_on_each_branchs_output():
    layer, x = linear(), batch(2000, 12)
    model, a = adapted(layer, ad.PETALface(**{**FREE, "dropout": 0.25}))
    shake(model)
    model.train()
    torch.manual_seed(0)
    with ad.steer(quality=0.3):
        added = (model(x) - layer.frozen_forward(x)).detach()
        assert not torch.equal(model(x), model(x))
    low, high = (
        0.7 * share * (x @ (a.B[k] @ a.A[k]).T).detach() / 0.75 for k, share in (("low", 0.7), ("high", 0.3))
    )
    kinds = (
        torch.stack([added - part for part in (torch.zeros_like(low), low, high, low + high)]).abs() < 1e-9
    )
    shares = kinds.double().mean((1, 2))
    torch.testing.assert_close(
        shares, torch.tensor([1 / 16, 3 / 16, 3 / 16, 9 / 16]).double(), rtol=0, atol=0.02
    )
    torch.testing.assert_close(kinds.any(0), torch.ones_like(kinds[0]))


def test_scores_per_sample_do_not_merge():
    model, a = adapted(linear(), ad.PETALface())
    before = a.host.weight().clone()
    with ad.steer(quality=torch.rand(4)), pytest.raises(MergeError, match="quality is steered per sample"):
        ad.merge(model)
    assert torch.equal(a.host.layer._parameters["weight"], before)
    with pytest.raises(StateError, match="needs to know 'quality'"):
        model(batch(4, 12))


def test_it_compiles_with_scores_and_with_a_number():
    model, _ = adapted(linear(), ad.PETALface())
    shake(model)
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), batch(4, 5, 12)
    for quality in (torch.rand(4), torch.rand(4), 0.3, 0.6):
        with ad.steer(quality=quality):
            torch.testing.assert_close(compiled(x), model(x))


def test_counts_are_the_sheets():
    widths = [384] * 2 + [768] * 18 + [1536] * 2
    with torch.device("meta"):
        blocks = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)}) for d in widths
        )
        model = nn.ModuleDict({"blocks": blocks, "feature": nn.Linear(38400, 512, bias=False)})
    assert ad.plan(model, "petalface", targets="*.qkv").trainable == 1_130_496
    assert ad.plan(model, "lora", targets="*.qkv").trainable + 311_296 == 876_544
    assert ad.plan(model, "lora", targets="feature").trainable == 311_296
