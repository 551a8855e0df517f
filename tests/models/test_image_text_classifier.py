"""The classifier of images with texts: ViLT's counts from the recipe, one encoder of both or one of each, and what trains."""

from __future__ import annotations

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.models import composite_models
from adaptome.models.image_text_classifier import ImageTextClassifier
from adaptome.recipe import load_recipe, stages_of

VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8, "image_size": 16}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 258, "max_position_embeddings": 40}  # fmt: skip
VILT = {"model_type": "vilt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8, "image_size": 16, "vocab_size": 258, "max_position_embeddings": 40}  # fmt: skip
JOINT = {"joint": {"from_config": VILT}}
TWO = {"image": {"from_config": VIT}, "text": {"from_config": BERT}, "width": 8, "heads": 2, "layers": 1}
GIVEN = torch.randn(2, 3, 16, 16), {"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}  # fmt: skip


def classifier(settings) -> ImageTextClassifier:
    torch.manual_seed(0)
    made = composite_models()["image-text-classifier"].from_settings(**settings, labels=3)
    assert isinstance(made, ImageTextClassifier)
    return made.eval()


def test_counts_of_vilt_from_the_recipe():
    (_, first), (_, second) = stages_of(load_recipe("missing-modality-food101"))
    assert second.model.settings == {"joint": "dandelin/vilt-b32-mlm"}
    with torch.device("meta"):
        model = ImageTextClassifier.from_settings(weights=False, joint={"from_config": {"model_type": "vilt"}}, labels=101)  # fmt: skip
    told = second.methods[0]
    plan = ad.plan(model, told.name, targets=told.targets, exclude=told.exclude, **told.settings)
    # the sheet's 22 C a block; beside it the last norm, the pooler, and each modality's own embedding in its set
    assert plan.trainable == 2 * (12 * 22 * 768 + 2 * 768 + 2 * 768) + 2 * 768 + 2 * 768 == 414_720
    assert plan.trainable / 2 / sum(p.numel() for p in model.parameters()) < 0.01
    everything = ad.plan(model, first.methods[0].name, train=first.methods[0].train)
    assert everything.trainable == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("settings", [JOINT, TWO], ids=["joint", "two"])
def test_a_label_or_several_by_both(settings, tmp_path):
    model, (pixels, tokens) = classifier(settings), GIVEN
    made = model(pixels, tokens, torch.tensor([0, 2]))
    assert made["logits"].shape == (2, 3) and made["loss"] > 0
    several = model(pixels, tokens, torch.tensor([[0.0, 1, 1], [0, 0, 0]]))["loss"]
    assert several.item() == pytest.approx(float(torch.nn.functional.binary_cross_entropy_with_logits(made["logits"], torch.tensor([[0.0, 1, 1], [0, 0, 0]]))))  # fmt: skip
    padded = {"input_ids": torch.tensor([[8, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    torch.testing.assert_close(model(pixels[1:], padded)["logits"], made["logits"][1:], rtol=1e-4, atol=1e-5)
    made["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = ImageTextClassifier.from_pretrained(tmp_path).eval()
    assert torch.equal(again(pixels, tokens)["logits"], made["logits"])


def test_models_that_do_not_go_together_are_told():
    for wrong in ({}, {"image": {"from_config": VIT}}, {**JOINT, **TWO}):
        with pytest.raises(ModelError, match="give joint"):
            classifier(wrong)
    with pytest.raises(ModelError, match="bert is no ViLT"):
        classifier({"joint": {"from_config": BERT}})
