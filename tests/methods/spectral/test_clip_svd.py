"""CLIP-SVD: the spectrum of each weight and nothing else (arXiv:2509.03740)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MethodError
from tests.methods.helpers import adapted, batch, linear, shake


def clip(vision=(32, 64), text=(24, 48), layers=2, heads=(4, 4), meta=False, **sizes):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    shared = dict(num_hidden_layers=layers) if isinstance(layers, int) else {}
    rows = layers if isinstance(layers, tuple) else (layers, layers)
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision[0], intermediate_size=vision[1], num_attention_heads=heads[0],
            **{**shared, "num_hidden_layers": rows[0]}, **sizes.get("image", {"image_size": 16, "patch_size": 8}),
        ).to_dict(),
        text_config=CLIPTextConfig(
            hidden_size=text[0], intermediate_size=text[1], num_attention_heads=heads[1],
            **{**shared, "num_hidden_layers": rows[1]}, **sizes.get("words", {"vocab_size": 50, "max_position_embeddings": 12}),
        ).to_dict(),
        projection_dim=16,
    )  # fmt: skip
    with torch.device("meta" if meta else "cpu"):
        return CLIPModel(config).eval()


def inputs(model):
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)),
    }


BLOCKS = ["*layers.*_proj", "*layers.*fc1", "*layers.*fc2"]


@pytest.mark.parametrize(("fan_in", "fan_out"), [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_forward_merge_and_gradients_are_the_dense_weights(fan_in, fan_out, ratio):
    layer, x = linear(fan_in, fan_out), batch(2, 5, fan_in)
    model, a = adapted(layer, ad.ClipSVD(ratio=ratio))
    W = layer._parameters["weight"].detach()
    bias = layer.bias
    torch.testing.assert_close(model(x), nn.functional.linear(x, W, bias))
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(a.d0, torch.linalg.svdvals(W)[: len(a.d0)])
    shake(model, 0.05)
    change = torch.zeros_like(S)
    change[: len(a.dS)] = a.dS.detach()
    changed = (U * (S + change) @ Vt).requires_grad_()
    expected = nn.functional.linear(x, changed, bias)
    torch.testing.assert_close(model(x), expected)
    # dL/dS_i = u_i^T (dL/dW) v_i
    G = torch.autograd.grad(expected.square().sum(), changed)[0]
    gradient = torch.autograd.grad(model(x).square().sum(), a.dS)[0]
    torch.testing.assert_close(gradient, torch.stack([U[:, i] @ G @ Vt[i] for i in range(len(a.dS))]))
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)
    between = U.T @ layer.weight @ Vt.T
    torch.testing.assert_close(between, torch.diag(S + change))


def test_the_rank_is_the_share_in_fours():
    host = adapted(linear(14, 11), ad.ClipSVD())[1].host
    assert [ad.ClipSVD(ratio=r).rank(host) for r in (1.0, 0.9, 0.5, 0.1)] == [8, 8, 4, 1]


def test_a_clip_starts_as_the_base_and_only_spectra_train(tmp_path):
    model = clip()
    before = model(**inputs(model))
    base = {k: v.clone() for k, v in model.state_dict().items()}
    plan = ad.attach(model, "clip-svd", targets=BLOCKS)
    assert plan.trainable == 2 * 6 * 32 + 2 * 6 * 24
    after = model(**inputs(model))
    torch.testing.assert_close(after.image_embeds, before.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.text_embeds, before.text_embeds, rtol=1e-5, atol=1e-5)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.endswith(".dS")}
    optimiser = torch.optim.AdamW(ad.parameters_of(model).values(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**inputs(model)).logits_per_image.softmax(-1)[:, 0].sum()
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(model.state_dict()[k], v) for k, v in base.items())
    ad.save(model, tmp_path / "a")
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < 4 * plan.trainable + 6000
    expected = model(**inputs(model)).logits_per_image
    other = clip()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(**inputs(other)).logits_per_image, expected)
    with ad.disabled(model):
        assert torch.equal(model(**inputs(model)).logits_per_image, before.logits_per_image)


def test_a_fused_matrix_has_one_spectrum_and_its_parts_one_each():
    fused, x = linear(16, 48).double(), batch(3, 16)
    parts = nn.ModuleList([nn.Linear(16, 16).double() for _ in range(3)])
    for part, W, b in zip(parts, fused.weight.chunk(3), fused.bias.chunk(3), strict=True):
        part.weight.data.copy_(W), part.bias.data.copy_(b)
    before = fused(x)
    assert ad.attach(parts, "clip-svd", targets=["0", "1", "2"]).trainable == 48
    torch.testing.assert_close(torch.cat([part(x) for part in parts], -1), before)
    assert ad.plan(nn.Sequential(fused), "clip-svd", targets="0").trainable == 16
    for i, a in ad.adapters(parts)["default"].adapters.items():
        torch.testing.assert_close(a.d0, torch.linalg.svdvals(fused.weight.chunk(3)[int(i)]))


@pytest.mark.parametrize("kind", ["conv", "embedding"])
def test_other_kinds_have_spectra_too(kind):
    layer = nn.Conv2d(6, 8, (3, 2), groups=2, padding=1) if kind == "conv" else nn.Embedding(11, 6)
    x = batch(2, 6, 5, 4) if kind == "conv" else torch.tensor([[3, 10, 0], [3, 3, 7]])
    model, a = adapted(layer, "clip-svd")
    before = model(x)
    shake(model)
    W = a.host.weight()
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    S[: len(a.dS)] += a.dS.detach()
    changed = a.host.native(U * S @ Vt)
    if kind == "conv":
        expected = nn.functional.conv2d(x, changed, layer.bias, padding=1, groups=2)
    else:
        expected = changed[x]
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model(x), before)


def test_in_half_precision_it_starts_as_the_base_to_the_bit():
    model = nn.Sequential(linear()).bfloat16()
    x = batch(5, 12).bfloat16()
    before = model(x)
    ad.attach(model, "clip-svd", targets="0")
    assert torch.equal(model(x), before)


def test_counts_are_the_papers():
    words = {"vocab_size": 49408, "max_position_embeddings": 77}
    base = clip(
        (768, 3072),
        (512, 2048),
        12,
        (12, 8),
        meta=True,
        image={"image_size": 224, "patch_size": 16},
        words=words,
    )
    assert ad.plan(base, "clip-svd", targets=BLOCKS).trainable == 92_160
    assert ad.plan(base, "clip-svd", targets=[f"text_model.*{p[1:]}" for p in BLOCKS]).trainable == 36_864
    ends = [*range(4), *range(8, 12)]
    assert ad.plan(base, "clip-svd", targets=BLOCKS, layers=ends).trainable == 92_160 * 8 // 12
    large = clip(
        (1024, 4096),
        (768, 3072),
        (24, 12),
        (16, 12),
        meta=True,
        image={"image_size": 224, "patch_size": 14},
        words=words,
    )
    assert ad.plan(large, "clip-svd", targets=BLOCKS).trainable == 202_752


@pytest.mark.parametrize(("fan_in", "fan_out"), [(12, 20), (20, 12)])
def test_a_truncated_layer_is_its_leading_part(fan_in, fan_out):
    layer, x = linear(fan_in, fan_out), batch(2, 5, fan_in)
    model, a = adapted(layer, ad.ClipSVD(ratio=0.7, rest="dropped"))
    W, bias = a.host.weight(), layer.bias
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    assert len(a.dS) == 8 == ad.ClipSVD(ratio=0.7).parameters(a.host)
    torch.testing.assert_close(model(x), nn.functional.linear(x, U[:, :8] * S[:8] @ Vt[:8], bias))
    shake(model, 0.05)
    kept = (U[:, :8] * (S[:8] + a.dS.detach()) @ Vt[:8]).requires_grad_()
    expected = nn.functional.linear(x, kept, bias)
    torch.testing.assert_close(model(x), expected)
    G = torch.autograd.grad(expected.square().sum(), kept)[0]
    gradient = torch.autograd.grad(model(x).square().sum(), a.dS)[0]
    torch.testing.assert_close(gradient, torch.stack([U[:, i] @ G @ Vt[i] for i in range(8)]))
    ad.activate(model, "default", weights={"default": 0.25})
    torch.testing.assert_close(model(x), nn.functional.linear(x, torch.lerp(W, kept.detach(), 0.25), bias))
    ad.activate(model, "default")
    ad.attach(model, "lora", name="second", targets="0", r=2)
    ad.parameters_of(model, "second")["0.B"].data.normal_()
    both = ad.weight_of(model, "0").detach()
    torch.testing.assert_close(model(x), nn.functional.linear(x, both, bias))
    ad.merge(model)
    torch.testing.assert_close(layer.weight, both)


def test_a_truncated_layer_is_saved_by_its_spectrum(tmp_path):
    model, a = adapted(linear(), ad.ClipSVD(ratio=0.7, rest="dropped"))
    shake(model)
    ad.save(model, tmp_path / "a")
    from safetensors.torch import load_file

    assert [v.shape for v in load_file(tmp_path / "a" / "adapter.safetensors").values()] == [(8,)]
    other = nn.Sequential(linear()).double()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(batch(3, 12)), model(batch(3, 12)))


@pytest.mark.parametrize("rest", ["frozen", "dropped"])
def test_the_rank_by_energy(rest):
    model, a = adapted(linear(), ad.ClipSVD(energy=0.8, rest=rest))
    S = torch.linalg.svdvals(a.host.weight())
    share = [float(S[:r].square().sum() / S.square().sum()) for r in range(13)]
    assert share[len(a.dS)] >= 0.8 > share[len(a.dS) - 1]
    assert ad.ClipSVD(energy=1.0).rank(a.host) == 12
    with pytest.raises(MethodError, match="meta device"):
        ad.plan(nn.Linear(12, 20, device="meta"), ad.ClipSVD(energy=0.8), targets="=")
    with pytest.raises(MethodError, match="give one of them"):
        ad.ClipSVD(energy=0.8, ratio=0.5)


def test_truncated_convolutions_and_experts():
    conv, x = nn.Conv2d(4, 6, 3, padding=1), batch(2, 4, 5, 5)
    model, a = adapted(conv, ad.ClipSVD(ratio=0.7, rest="dropped"))
    shake(model, 0.05)
    W = ad.weight_of(model, "0").detach()
    assert torch.linalg.matrix_rank(W.flatten(1)) == 4
    torch.testing.assert_close(model(x), nn.functional.conv2d(x, W, conv.bias, padding=1))
