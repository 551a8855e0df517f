"""Hydra against its equations (arXiv:2309.06922)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MergeError, MethodError
from tests.methods.helpers import adapted, batch, linear, roberta, shake


@pytest.mark.parametrize(("fan_in", "fan_out"), [(12, 20), (20, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_merge_are_the_equation(fan_in, fan_out, bias):
    layer, x = linear(fan_in, fan_out), batch(3, 5, fan_in)
    W, b = layer.weight.detach().double().clone(), layer.bias.detach().double().clone()
    model, a = adapted(layer, ad.Hydra(r=2, q=3, scale=0.7, bias=bias))
    assert torch.equal(model(x), nn.functional.linear(x, W, b))
    shake(model)
    f = x @ W.T + b
    ap, bp, as_, bs = (getattr(a, k) if bias else 0.0 for k in ("ap", "bp", "as", "bs"))
    expected = f + 0.7 * ((x @ a.Ap.T + ap) @ a.Bp.T + bp) + 0.7 * ((f @ a.As.T + as_) @ a.Bs.T + bs)
    torch.testing.assert_close(model(x), expected)
    S, P = a.Bs @ a.As, a.Bp @ a.Ap
    ad.merge(model)
    torch.testing.assert_close(layer._parameters["weight"], W + 0.7 * (P + S @ W))
    branch = a.Bp @ ap + bp + a.Bs @ as_ + bs if bias else 0.0
    torch.testing.assert_close(layer._parameters["bias"], b + 0.7 * (S @ b + branch))
    torch.testing.assert_close(model(x), expected)
    ad.unmerge(model)
    assert torch.equal(layer._parameters["weight"], W)


def test_one_branch_alone_is_lora_or_a_sequential_adapter():
    layer, x = linear(), batch(4, 12)
    model, a = adapted(layer, ad.Hydra(r=3, q=0, scale=2.0))
    shake(model)
    lora_model, b = adapted(linear(), ad.LoRA(r=3, alpha=6.0))
    with torch.no_grad():
        b.A.copy_(a.Ap)
        b.B.copy_(a.Bp)
    torch.testing.assert_close(model(x), lora_model(x))
    model, a = adapted(linear(bias=False), ad.Hydra(r=0, q=3))
    shake(model)
    W = a.host.weight()
    torch.testing.assert_close(model(x), x @ ((torch.eye(20) + a.Bs @ a.As) @ W).T)
    rank_deficient = torch.linalg.matrix_rank(a.changed("weight", W) - W)
    assert rank_deficient <= 3


def test_the_sequential_update_stays_in_the_row_space_of_the_weight():
    layer = linear(20, 12, bias=False)
    with torch.no_grad():
        layer.weight[6:] = layer.weight[:6] * 2  # of rank 6
    model, a = adapted(layer, ad.Hydra(r=0, q=3))
    shake(model)
    W = a.host.weight()
    added = a.changed("weight", W) - W
    rank = torch.linalg.matrix_rank
    assert rank(W) == rank(torch.cat([W, added])) == 6 and rank(added) == 3
    model, a = adapted(linear(20, 12), ad.Hydra(r=2, q=3))
    shake(model)
    assert rank(a.changed("weight", a.host.weight()) - a.host.weight()) == 5


def test_dropout_sits_between_the_projections_in_training_alone():
    model, a = adapted(linear(), ad.Hydra(r=2, q=0, dropout=0.5))
    shake(model)
    x, still = batch(400, 12), model(batch(400, 12))
    torch.testing.assert_close(model(x), still)
    added = model.train()(x) - a.host.layer.frozen_forward(x)
    z = x @ a.Ap.T
    parts = [2 * z * torch.tensor(mask, dtype=z.dtype) @ a.Bp.T for mask in ((0, 0), (0, 1), (1, 0), (1, 1))]
    near = torch.stack([(added - part).abs().amax(1) < 1e-9 for part in parts])
    assert near.any(0).all() and near.any(1).all()


def test_gradients_reach_the_ups_first():
    model, a = adapted(linear(), ad.Hydra(r=2, q=2))
    model(batch(4, 12)).sum().backward()
    assert a.Bp.grad.abs().sum() > 0 and a.Bs.grad.abs().sum() > 0
    assert a.Ap.grad.abs().sum() == 0 and a.As.grad.abs().sum() == 0


@pytest.mark.parametrize(("r", "q"), [(2, 3), (2, 0), (0, 3)])
def test_export_is_exact_without_a_bias_and_refused_with_one(r, q, tmp_path):
    model, _ = adapted(linear(bias=False), ad.Hydra(r=r, q=q))
    shake(model)
    x, expected = batch(4, 12), model(batch(4, 12))
    assert ad.export(model, tmp_path / "out").worst == 0.0
    other = nn.Sequential(linear(bias=False)).double()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
    model, _ = adapted(linear(), ad.Hydra())
    with pytest.raises(MergeError, match="bias"):
        ad.export(model, tmp_path / "refused")


def test_bad_settings_are_refused():
    with pytest.raises(MethodError, match="at least one branch"):
        ad.Hydra(r=0, q=0)
    with pytest.raises(HostError, match="bias=False"):
        adapted(linear(bias=False), ad.Hydra(bias=True))


def test_count_is_the_papers():
    plan = ad.plan(roberta(), ad.Hydra(r=4, q=8))
    assert len(plan.entries) == 12 and plan.trainable == 331_776


def test_counts_on_vision_transformers():
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    with torch.device("meta"):
        vit = ViTModel(ViTConfig(), add_pooling_layer=False)
        clip = CLIPVisionModel(CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, patch_size=32))  # fmt: skip
    both = ad.plan(vit, ad.Hydra(r=2, q=2, bias=True), targets=("o", "down"))
    assert len(both.entries) == 24 and both.trainable == 239_712
    assert ad.plan(clip, ad.Hydra(r=2, q=2, bias=True)).trainable == 147_504
