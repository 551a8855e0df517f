"""LAE's three modules on its backbones: counts at full size, the start, and merging of keys and values."""

import pytest
import torch
from transformers import ConvNextConfig, ConvNextModel, SwinConfig, SwinModel, ViTConfig, ViTModel

import adaptome as ad

ADAPTER = {"size": 5, "bias": True, "activation": "gelu", "scale": "learned"}
#: blocks 0-9 of Swin-B and 0-14 of ConvNeXt-B, which are counted within each stage
SWIN = ["encoder.layers.[01].blocks.*.attention", "encoder.layers.2.blocks.[0-5].attention"]
CONVNEXT = ["encoder.stages.[01].layers.[0-9]", "encoder.stages.2.layers.[0-8]"]


def swin(**config):
    return SwinModel(SwinConfig(**config), add_pooling_layer=False)


def convnext(**config):
    return ConvNextModel(ConvNextConfig(**config))


@pytest.mark.parametrize(
    "build, config, targets, count, blocks",
    [
        (swin, {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7}, SWIN, 42_300, 10),
        (convnext, {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]}, CONVNEXT, 63_450, 15),
    ],
)  # fmt: skip
def test_adapters_on_shallow_blocks_have_the_papers_count(build, config, targets, count, blocks):
    with torch.device("meta"):
        model = build(**config)
    plan = ad.plan(model, "parallel", targets=targets, **ADAPTER)
    assert plan.trainable == count and len(plan.entries) == blocks


@pytest.mark.parametrize(
    "build, config, targets",
    [
        (swin, {"embed_dim": 8, "depths": [2, 2, 7], "num_heads": [1, 2, 2], "window_size": 2, "image_size": 16, "patch_size": 2}, SWIN),
        (convnext, {"depths": [1, 2, 9], "hidden_sizes": [6, 8, 10], "num_stages": 3}, CONVNEXT),
    ],
)  # fmt: skip
def test_they_begin_as_the_backbone_and_then_learn(build, config, targets):
    torch.manual_seed(0)
    model = build(**config).eval()
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model(pixels).last_hidden_state
    ad.attach(model, "parallel", targets=targets, **ADAPTER)
    after = model(pixels).last_hidden_state
    assert torch.equal(after, before)
    after.square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_beside_a_block_of_convolutions_the_maps_are_convolutions_of_one_pixel():
    torch.manual_seed(0)
    model = convnext(depths=[1, 1], hidden_sizes=[4, 6], num_stages=2).eval().double()
    block = model.encoder.stages[0].layers[0]
    x = torch.rand(2, 4, 4, 4, dtype=torch.float64)  # as many rows and columns as channels
    plain = block(x).detach()
    ad.attach(model, "parallel", targets=["encoder.stages.0.layers.0"], **ADAPTER)
    p = {name.rpartition(".")[2]: q for name, q in model.named_parameters() if q.requires_grad}
    with torch.no_grad():
        for q in p.values():
            q.add_(torch.randn_like(q))
    conv = torch.nn.functional.conv2d
    z = torch.nn.functional.gelu(conv(x, p["D"][:, :, None, None], p["d"]))
    expected = plain + p["s"] * conv(z, p["U"][:, :, None, None], p["u"])
    torch.testing.assert_close(block(x), expected)


def test_low_rank_keys_and_values_merge_and_leave_the_queries():
    torch.manual_seed(0)
    size = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(image_size=8, patch_size=4, **size), add_pooling_layer=False).eval()
    pixels = torch.rand(3, 3, 8, 8)
    frozen = {k: v.clone() for k, v in model.state_dict().items()}
    plain = model(pixels).last_hidden_state.detach()
    ad.attach(model, "lora", targets=["k", "v"], r=5, alpha=5, train_scale=True)
    assert torch.equal(model(pixels).last_hidden_state, plain)  # exactly the backbone at the start
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(torch.randn_like(p) * 0.3)
    changed = model(pixels).last_hidden_state.detach()
    assert not torch.allclose(changed, plain)
    ad.merge(model, keep=False)
    merged = model.state_dict()
    moved = {k for k in frozen if not torch.equal(merged[k], frozen[k])}
    maps = [k for k in frozen if k.endswith("weight") and any(part in k.split(".") for part in ("k_proj", "v_proj", "key", "value"))]  # fmt: skip
    assert len(maps) == 4 and moved == set(maps)  # queries, as all else, bit for bit
    torch.testing.assert_close(model(pixels).last_hidden_state, changed, atol=1e-5, rtol=1e-5)
