"""Dual encoders as classifiers: the kinds that fit, groups of classes, and fused maps that are split."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MissingExtraError, ModelError
from adaptome.models import composite_models
from adaptome.models.open_clip import SplitLinear, open_clip_source, split_qkv
from adaptome.models.prompted_classifier import Classes
from adaptome.recipe import load_recipe
from tests.tasks.test_image_text_classification import WIDTHS

TEXT = {**WIDTHS, "vocab_size": 50, "max_position_embeddings": 16}
VISION = {**WIDTHS, "image_size": 16, "patch_size": 8}
KINDS = {
    "clip": {"model_type": "clip", "projection_dim": 8, "text_config": {**TEXT, "eos_token_id": 2}, "vision_config": VISION},
    "siglip": {"model_type": "siglip", "text_config": TEXT, "vision_config": VISION},
    "vision-text-dual-encoder": {
        "model_type": "vision-text-dual-encoder", "projection_dim": 8, "text_config": {"model_type": "bert", **TEXT},
        "vision_config": {"model_type": "vit", **VISION},
    },
}  # fmt: skip


def made(kind: str):
    torch.manual_seed(0)
    return (
        composite_models()["prompted-classifier"].from_settings(encoder={"from_config": KINDS[kind]}).eval()
    )


def classes(groups=(0, 0, 1)) -> Classes:
    return Classes(torch.tensor([[5, 6, 2], [5, 7, 2], [9, 6, 2]]), groups=torch.tensor(groups))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_scaled_cosines_and_adapters_start_as_the_base(kind):
    model, x = made(kind), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        found = model(x, classes=classes())["logits"]
        f, t = model.image_features(x), model.text_features(classes().ids)
        assert torch.allclose(found, model.scale() * f @ t.T, atol=1e-5) and torch.allclose(
            f.norm(dim=-1), torch.ones(4)
        )
        ad.attach(model, "clip-svd", targets=["attention", "mlp"])
        assert torch.allclose(model(x, classes=classes())["logits"], found, atol=1e-3)


def test_a_picture_is_told_among_its_group_and_other_texts_are_not_encoded():
    model, x = made("clip"), torch.randn(2, 3, 16, 16)
    seen: list[int] = []
    encode = model.text_features
    model.text_features = lambda ids, mask=None: (seen.append(len(ids)), encode(ids, mask))[1]
    whole = model(x, groups=torch.tensor([0, 1]), classes=classes())["logits"]
    assert torch.isinf(whole).tolist() == [[False, False, True], [True, True, False]] and seen == [3]
    first = model(x, groups=torch.tensor([0, 0]), labels=torch.tensor([0, 1]), classes=classes())
    assert seen == [3, 2] and torch.isinf(first["logits"][:, 2]).all()
    assert torch.allclose(first["logits"][0, :2], whole[0, :2]) and first["loss"].isfinite()


def test_a_fixed_head_is_the_texts():
    model, x = made("clip"), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        free = model(x, classes=classes())["logits"]
        model.fix(classes())
        assert torch.allclose(model(x)["logits"], free, atol=1e-5)
    assert not model.head.weight.requires_grad


def test_it_is_saved_and_loaded_and_what_is_none_is_refused(tmp_path):
    model, x = made("clip"), torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m").eval()
    assert torch.equal(again(x, classes=classes())["logits"], model(x, classes=classes())["logits"])
    vit = {"model_type": "vit", **VISION}
    with pytest.raises(
        ModelError, match="is a ViTModel, which has no get_image_features and no get_text_features"
    ):
        composite_models()["prompted-classifier"].from_settings(encoder={"from_config": vit})


def test_a_fused_map_is_split_into_three_spectra_and_gives_the_same():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            return self.qkv(x)

    model, x = Attention(), torch.randn(5, 8)
    before = model(x)
    assert ad.plan(model, "clip-svd", targets="qkv").trainable == 8
    assert split_qkv(model) == 1 and isinstance(model.qkv, SplitLinear)
    assert torch.allclose(model(x), before, atol=1e-6)
    assert ad.plan(model, "clip-svd", targets=["*q_proj", "*k_proj", "*v_proj"]).trainable == 24


def test_names_of_open_clip_are_told(tmp_path):
    assert open_clip_source("openai/clip-vit-base-patch16") is None
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert open_clip_source(str(tmp_path)) == f"local-dir:{tmp_path}"
    try:
        import open_clip  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"adaptome\[open-clip\]"):
            composite_models()["prompted-classifier"].from_settings(encoder={"name": str(tmp_path)})


def test_the_papers_counts_from_the_recipe():
    from adaptome.tasks.models import shapes_alone

    recipe = load_recipe("clip-svd-few-shot")
    assert recipe.model.name == "openai/clip-vit-base-patch16"
    sizes = {
        "B/16": ({"patch_size": 16}, {}, 92_160),
        "L/14": ({"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
                 {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}, 202_752),
    }  # fmt: skip
    for vision, text, count in sizes.values():
        config = {"model_type": "clip", "vision_config": vision, "text_config": text}
        with shapes_alone():
            model = composite_models()["prompted-classifier"].from_settings(encoder={"from_config": config})
        method = recipe.methods[0]
        assert ad.plan(model, method.name, targets=method.targets).trainable == count


def test_logits_are_told_finely_under_autocast():
    model, x = made("clip"), torch.randn(3, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(x, classes=classes())
        pairs = model(x, input_ids=classes().ids)
    f, t = pairs["image_embeds"].float(), pairs["text_embeds"].float()
    assert found["logits"].dtype == torch.float32 and pairs["loss"].dtype == torch.float32
    torch.testing.assert_close(found["logits"], model.scale().detach() * f @ t.T, atol=1e-5, rtol=1e-5)
    model.fix(classes())
    ad.attach(model, "tip-adapter", targets="head", alpha=0.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fixed = model(x)
    torch.testing.assert_close(fixed["logits"], fixed["image_embeds"].float() @ model.head.weight.T, atol=1e-5, rtol=1e-5)  # fmt: skip
