"""The classifier of GenD: its counts at full size, its sphere, and which of it trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import ModelError, RecipeError
from adaptome.models.feature_classifier import FeatureClassifier

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CLIP_L = {"model_type": "clip_vision_model", "patch_size": 14, "image_size": 224, **LARGE}
CLIP_B = {"model_type": "clip", "vision_config": {"patch_size": 16, "image_size": 224}}
DINO_L = {"model_type": "dinov3_vit", "patch_size": 16, "image_size": 224, "num_register_tokens": 4, **LARGE}
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "image_size": 16, "patch_size": 8}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", **TINY}
ENCODERS = {"clip": CLIP, "dinov3": {"model_type": "dinov3_vit", "num_register_tokens": 1, **TINY}, "vit": {"model_type": "vit", **TINY}}  # fmt: skip


def made(encoder: dict | str = CLIP, **settings) -> FeatureClassifier:
    torch.manual_seed(0)
    part = {"from_config": encoder} if isinstance(encoder, dict) else encoder
    return FeatureClassifier.from_settings(encoder=part, **settings).eval()


def tuned(model: nn.Module) -> set[str]:
    """Names of what trains once the norms and the head are tuned; both are kept beside the base's own."""
    ad.attach(model, "norm-tuning", targets="encoder.norms", train="head")
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("config", "norms", "numbers", "width"),
    [(CLIP_L, 50, 102_400, 1024), (CLIP_B, 26, 39_936, 768), (DINO_L, 49, 100_352, 1024)],
    ids=["CLIP ViT-L/14", "CLIP ViT-B/16", "DINOv3 ViT-L/16"],
)
def test_counts_at_full_size_are_the_papers(config, norms, numbers, width):
    with torch.device("meta"):
        model = FeatureClassifier.from_settings(encoder={"from_config": config})
    base = sum(p.numel() for p in model.encoder.parameters())
    assert sum(isinstance(m, nn.LayerNorm) for m in model.modules()) == norms
    tuned(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == numbers + 2 * width + 2
    if config is CLIP_L:
        assert base == 303_179_776 and trained / (base + 786_432) < 0.00035


@pytest.mark.parametrize("config", ENCODERS.values(), ids=list(ENCODERS))
def test_norms_by_type_are_what_trains_and_nothing_else(config):
    model = made(config)
    by_type = {name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    trained = tuned(model)
    assert {name.partition(".adaptome.")[0] for name in trained} == by_type | {"head"}
    assert len(trained) == 2 * len(by_type) + 2


def test_a_name_that_holds_norm_makes_no_norm_and_rms_norms_have_scales_alone():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.rms = nn.LayerNorm(6), nn.RMSNorm(6)
            self.normal_map = nn.Linear(6, 5)  # a substring "norm" would take it

        def forward(self, x):
            return self.normal_map(self.rms(self.norm1(x)))

    model = Block()
    plan = ad.attach(model, "norm-tuning")
    assert plan.trainable == 6 + 6 + 6
    assert not model.normal_map.weight.requires_grad


@pytest.mark.parametrize("config", ENCODERS.values(), ids=list(ENCODERS))
def test_the_start_is_the_base_to_the_bit_and_training_moves_norms_and_head_alone(config):
    model, x, y = made(config), torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 0, 1, 1, 1])
    before, kept = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    tuned(model)
    after = model(x)
    assert all(torch.equal(before[k], after[k]) for k in ("logits", "embeddings"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        model(x, y)["loss"].backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not torch.equal(model(x)["logits"], before["logits"])
    now = model.state_dict()
    assert all(torch.equal(kept[k], now[k]) for k in kept), "what trained stands beside the base"
    ad.merge(model, keep=False)
    merged = model.state_dict()
    norms = {
        f"{n}.{p}"
        for n, m in model.named_modules()
        if isinstance(m, nn.LayerNorm)
        for p in ("weight", "bias")
    }
    assert {k for k in kept if not torch.equal(kept[k], merged[k])} == norms | {"head.weight", "head.bias"}


def test_features_are_on_the_sphere_and_their_length_does_not_matter():
    model, x = made(), torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(model(x)["embeddings"].norm(dim=-1), torch.ones(5))
    features = model.features(x)
    for factor in (0.01, 3.0, 1000.0):
        torch.testing.assert_close(model.classify(features * factor)[0], model.classify(features)[0])
    free = made(normalize=False)
    assert not torch.allclose(free.classify(features * 3)[0], free.classify(features)[0])


def test_logits_follow_the_equation():
    model, x = made().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    feature = model.encoder(pixel_values=x).pooler_output
    z = feature / feature.square().sum(-1, keepdim=True).sqrt()
    expected = z @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x)["logits"], expected, atol=1e-6, rtol=1e-5)
    y = torch.tensor([1, 0, 0, 1])
    loss = -expected.log_softmax(-1)[torch.arange(4), y].mean()
    torch.testing.assert_close(model(x, y)["loss"].double(), loss, atol=1e-6, rtol=1e-5)


def test_the_feature_is_the_first_token_after_the_last_norm():
    x = torch.randn(2, 3, 16, 16)
    for config, norm in (("clip", "post_layernorm"), ("dinov3", "norm"), ("vit", None)):
        model = made(ENCODERS[config])
        states = model.encoder(pixel_values=x).last_hidden_state
        expected = getattr(model.encoder, norm)(states[:, 0]) if norm == "post_layernorm" else states[:, 0]
        torch.testing.assert_close(model.features(x), expected)
    assert torch.allclose(
        made(feature="mean").features(x), made().encoder(pixel_values=x).last_hidden_state.mean(1)
    )


def test_a_model_of_pictures_and_text_lends_its_vision_side(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    both = CLIPModel(CLIPConfig(vision_config=TINY, text_config=text)).eval()
    both.save_pretrained(tmp_path / "clip")
    model, x = made(str(tmp_path / "clip")), torch.randn(2, 3, 16, 16)
    assert torch.equal(model.features(x), both.vision_model(pixel_values=x).pooler_output)
    model.save_pretrained(tmp_path / "own")
    again = FeatureClassifier.from_pretrained(tmp_path / "own").eval()
    assert torch.equal(again(x)["logits"], model(x)["logits"])


def test_norms_and_head_alone_restore_the_predictions(tmp_path):
    model, x = made(), torch.randn(3, 3, 16, 16)
    tuned(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    ad.save(model, tmp_path / "adapter")
    again = made()
    ad.load(again, tmp_path / "adapter")
    assert torch.equal(again(x)["logits"], model(x)["logits"])
    assert sum(f.stat().st_size for f in (tmp_path / "adapter").iterdir()) <= 500_000


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=30)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text(made().encoder.config.to_json_string())
    with pytest.raises(ModelError, match="has no weights for"):
        made(str(tmp_path / "bert"))
    with pytest.raises(ModelError, match="Did you mean 'vit'"):
        made({"model_type": "vitt"})
    with pytest.raises(RecipeError, match="feature"):
        made(feature="second")
    with pytest.raises(ModelError, match="has none"):
        made(ENCODERS["vit"], feature="pooler").features(torch.randn(1, 3, 16, 16))
