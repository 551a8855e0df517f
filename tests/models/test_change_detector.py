"""The Siamese change detector: counts at full size, the exchange, symmetry, windows, and what trains."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.models import composite_models
from adaptome.models.change_detector import ChangeDetector, exchanged
from adaptome.models.dense_losses import IGNORED, pixel_loss
from adaptome.models.encoders import feature_maps
from adaptome.models.windows import padded, starts, tiled

DINOV3_L = {"model_type": "dinov3_vit", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "patch_size": 16, "num_register_tokens": 4}  # fmt: skip
HIERA_L = {
    "model_type": "sam2_hiera_det_model", "hidden_size": 144, "num_attention_heads": 2, "blocks_per_stage": [2, 6, 36, 4],
    "embed_dim_per_stage": [144, 288, 576, 1152], "num_attention_heads_per_stage": [2, 4, 8, 16], "window_size_per_stage": [8, 4, 16, 8],
    "global_attention_blocks": [23, 33, 43],
}  # fmt: skip
TINY = {
    "vit": {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8, "image_size": 32},
    "dinov3": {"model_type": "dinov3_vit", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8, "num_register_tokens": 2},
    "sam2": {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 4], "window_size_per_stage": [8, 4, 4, 4], "global_attention_blocks": [3],
    },
    "swin": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4, "image_size": 32},
}  # fmt: skip
ADAPTER = dict(size=32, place="before", activation="gelu", outer="gelu", bias=True, targets="blocks")


def detector(kind: str = "vit", **settings) -> ChangeDetector:
    torch.manual_seed(0)
    given = {
        "width": 8,
        "window": 32,
        "step": 16,
        **({"exchange": [0]} if kind == "swin" else {}),
        **settings,
    }
    made = composite_models()["change-detector"].from_settings(encoder={"from_config": TINY[kind]}, **given)
    assert isinstance(made, ChangeDetector)
    return made.eval()


def pair(size=(32, 32), batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 3, *size), torch.randn(batch, 3, *size)


@pytest.mark.parametrize(
    "config,decoder,lora,adapter",
    [
        (DINOV3_L, 1_934_598, 24 * 3 * 8 * 2048, 1_598_208),
        (HIERA_L, 9_284_866, 867_456, 1_714_416),
    ],
    ids=["dinov3", "sam2"],
)
def test_counts_at_full_size(config, decoder, lora, adapter):
    with torch.device("meta"):
        model = ChangeDetector.from_settings(weights=False, encoder={"from_config": config})
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder
    assert ad.attach(model, "lora", r=8, alpha=32, targets="encoder.qkv").trainable == lora
    ad.detach(model)
    assert ad.attach(model, "series", **ADAPTER).trainable == adapter
    if config is DINOV3_L:
        assert model.taps == [5, 11, 17, 23]


def test_an_exchange_swaps_two_maps_twice_restores_and_leaves_the_lists():
    a, b = [torch.tensor(float(i)) for i in range(4)], [torch.tensor(float(10 + i)) for i in range(4)]
    first, second = exchanged(a, b, [0, 2])
    assert [int(v) for v in first] == [10, 1, 12, 3] and [int(v) for v in second] == [0, 11, 2, 13]
    assert [int(v) for v in a] == [0, 1, 2, 3]
    assert exchanged(first, second, [0, 2]) == (a, b)


@pytest.mark.parametrize("kind", TINY)
def test_swapping_the_times_swaps_the_outputs_and_their_mean_stays(kind):
    model, (a, b) = detector(kind), pair((40, 56))
    with torch.no_grad():
        one, other, same = model(a, b), model(b, a), model(a, a)
    assert one["logits"].shape == (2, 2, 40, 56)
    torch.testing.assert_close(one["logits_before"], other["logits_after"])
    torch.testing.assert_close(one["logits"], other["logits"])
    torch.testing.assert_close(same["logits_before"], same["logits_after"])


def test_the_times_meet_in_the_exchange_alone():
    a, b = pair()
    for exchange, meets in (([], False), ([0, 2], True)):
        model, after = detector(exchange=exchange), b.clone().requires_grad_()
        model.train()
        model(a, after)["logits_before"].sum().backward()
        assert (after.grad is not None and bool(after.grad.abs().sum() > 0)) == meets


def test_the_loss_is_the_mean_of_both_times_over_the_known_pixels():
    model, (a, b) = detector(), pair()
    labels = torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8)
    labels[0, :5] = IGNORED
    made = model(a, b, labels)
    known = labels != IGNORED
    expected = [
        F.cross_entropy(made[name].double().movedim(1, -1)[known], labels[known].long())
        for name in ("logits_before", "logits_after")
    ]
    torch.testing.assert_close(made["loss"].double(), sum(expected) / 2)
    assert pixel_loss(made["logits"], torch.full_like(labels, IGNORED)) == 0


def test_only_adapter_and_decoder_train_and_the_encoder_keeps_its_bits():
    model, (a, b) = detector("dinov3"), pair()
    before = {name: p.clone() for name, p in model.encoder.named_parameters()}
    ad.attach(model, "lora", r=2, targets="encoder.qkv", train=["decoder"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".adaptome." in name or name.startswith("decoder.") for name in trained)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):
        model.train()(a, b, torch.ones(2, 32, 32, dtype=torch.uint8))["loss"].backward()
        optimizer.step()
    after = dict(model.encoder.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_merged_lora_gives_the_same_maps_and_an_adapter_of_zeros_the_base():
    model, (a, b) = detector("sam2"), pair()
    base = model(a, b)["logits"]
    ad.attach(model, "series", **{**ADAPTER, "size": 4})
    torch.testing.assert_close(model(a, b)["logits"], base)
    ad.detach(model)
    ad.attach(model, "lora", r=2, targets="encoder.qkv")
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(p, std=0.1)
    adapted = model(a, b)["logits"]
    ad.merge(model, keep=False)
    torch.testing.assert_close(model(a, b)["logits"], adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, base, atol=1e-4)


@pytest.mark.parametrize("kind", ["dinov3", "vit"])
def test_maps_are_those_of_the_blocks_with_their_adapters(kind):
    """The blocks' classes are swapped then, and their states must still be gathered; tokens that are no patches are left out."""
    model, (a, _) = detector(kind), pair((24, 40))
    ad.attach(model, "series", **{**ADAPTER, "size": 4, "init": "linear"})
    blocks: list[torch.Tensor] = []
    stack = model.encoder.model.layer if kind == "dinov3" else model.encoder.layers
    hooks = [block.register_forward_hook(lambda m, args, out: blocks.append(out)) for block in stack]
    maps = feature_maps(model.encoder, a, model.taps)
    for hook in hooks:
        hook.remove()
    norm = model.encoder.norm if kind == "dinov3" else model.encoder.layernorm
    for tokens, found in zip(blocks, maps, strict=True):
        expected = norm(tokens)[:, 3 if kind == "dinov3" else 1 :].unflatten(1, (3, 5)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected)
    with ad.disabled(model):
        assert not torch.allclose(feature_maps(model.encoder, a, model.taps)[-1], maps[-1], atol=1e-3)


def test_the_trunk_of_a_whole_sam2_is_taken(tmp_path):
    from transformers import Sam2Config, Sam2Model

    trunk = {key: value for key, value in TINY["sam2"].items() if key != "model_type"}
    vision = {"backbone_config": TINY["sam2"], "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16, "backbone_feature_sizes": [[8, 8], [4, 4], [2, 2]]}  # fmt: skip
    whole = Sam2Model(Sam2Config(vision_config=vision))
    whole.save_pretrained(tmp_path)
    model = ChangeDetector.from_settings(encoder=str(tmp_path), width=8)
    assert model.encoder.config.embed_dim_per_stage == trunk["embed_dim_per_stage"]
    for name, p in whole.vision_encoder.backbone.named_parameters():
        assert torch.equal(p, model.encoder.get_parameter(name))
    model.save_pretrained(tmp_path / "own")
    again, (a, b) = ChangeDetector.from_pretrained(tmp_path / "own").eval(), pair()
    assert torch.equal(again(a, b)["logits"], model.eval()(a, b)["logits"])


def test_settings_that_name_no_map_are_refused():
    with pytest.raises(ModelError, match=r"model.exchange names 4; there are 4"):
        detector(exchange=[0, 4])
    with pytest.raises(ModelError, match=r"model.taps names 9"):
        detector(taps=[0, 1, 2, 9])
    with pytest.raises(ModelError, match="leaves gaps"):
        detector(window=16, step=32)
    with pytest.raises(ModelError, match="gives a map a stage"):
        detector("sam2", taps=[0, 1])


# -- windows -------------------------------------------------------------------------------------------------------------


def test_a_picture_of_the_windows_size_is_seen_as_it_is_and_a_larger_one_in_windows():
    model, (a, b) = detector(), pair((32, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(a, b)["logits_before"], model.logits(a, b)[0])
        large = pair((48, 32))
        found = model(*large)["logits"]
        top, bottom = ([x[:, :, rows] for x in large] for rows in (slice(0, 32), slice(16, 48)))
        parts = [sum(model.logits(*one)) / 2 for one in (top, bottom)]
    torch.testing.assert_close(found[:, :, :16], parts[0][:, :, :16])
    torch.testing.assert_close(found[:, :, 16:32], (parts[0][:, :, 16:] + parts[1][:, :, :16]) / 2)


@pytest.mark.parametrize("size", [(10, 10), (17, 23), (8, 40), (64, 9)])
def test_every_pixel_is_covered_and_constant_maps_stay_constant(size):
    pixels = torch.zeros(1, 3, *size)
    (found,) = tiled(lambda x: [torch.full_like(x[:, :2], 3.0)], [pixels], 10, 7)
    assert torch.equal(found, torch.full((1, 2, *size), 3.0))
    covered = torch.zeros(size[0])
    for start in starts(size[0], 10, 7):
        covered[start : start + 10] += 1
    assert covered.min() >= 1


def test_padding_repeats_the_edge():
    made = padded(torch.arange(6.0).view(1, 1, 2, 3), 4, 8)
    assert made.shape == (1, 1, 8, 8) and made[0, 0, -1, -1] == 5
