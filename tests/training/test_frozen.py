"""The frozen base in evaluation mode, everything trained in training mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

import adaptome as ad
from adaptome.core.errors import RecipeError
from adaptome.recipe import load_recipe
from adaptome.tasks.pooling import EncoderClassifier
from adaptome.training.frozen import hold_base
from tests.sounds import WAV2VEC2


@pytest.fixture
def model():
    torch.manual_seed(0)
    settings = {k: v for k, v in WAV2VEC2.items() if k != "model_type"}
    settings |= {"hidden_dropout": 0.5, "layerdrop": 0.5, "mask_time_length": 2}
    built = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**settings))
    ad.attach(built, "lora", targets="attention", dropout=0.3, train=["projector", "classifier"], seed=0)
    return built


def test_the_base_evaluates_and_adapters_and_head_train(model):
    model.train()
    hold_base(model)
    assert model.training and model.projector.training and model.classifier.training
    assert not any(m.training for n, m in model.wav2vec2.named_modules() if "adaptome" not in n.split("."))
    adapters = [a for a in ad.adapters(model)["default"].adapters.values()]
    assert adapters and all(adapter.training for adapter in adapters)


def test_only_what_trains_is_random(model):
    """With the base held, its dropout, layer drop and masking draw nothing."""
    x = torch.randn(2, 800)
    outputs = []
    for held in (False, True):
        model.train()
        if held:
            hold_base(model)
        for adapter in ad.adapters(model)["default"].adapters.values():
            adapter.eval()  # its own dropout aside
        outputs.append([model(input_values=x).logits for _ in range(3)])
    assert not torch.equal(outputs[0][0], outputs[0][1])
    assert torch.equal(outputs[1][0], outputs[1][1])
    torch.testing.assert_close(outputs[1][0], model.eval()(input_values=x).logits)


def test_recomputed_activations_are_still_recomputed(model):
    model.gradient_checkpointing_enable()
    model.train()
    hold_base(model)
    assert all(layer.training for layer in model.wav2vec2.encoder.layers if layer.gradient_checkpointing)


def test_the_dropout_before_a_head_of_ours_trains():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), {"hidden_size": 4})()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout())

    model = EncoderClassifier(Encoder(), 2, 0.5).train()
    hold_base(model)
    assert model.dropout.training and not model.encoder.inner[1].training


def test_the_recipes_switch_is_a_real_boolean(tmp_path):
    base = {"task": "text-classification", "data": {"train": "a.jsonl"}, "method": "lora"}
    for given, read in (("False", False), ("false", False), ("True", True), ("no", False)):
        recipe = load_recipe(base, [f"training.base_eval={given}"])
        assert recipe.training.base_eval is read
        assert load_recipe({**base, "training": {"base_eval": given}}).training.base_eval is read
    with pytest.raises(RecipeError, match="training.base_eval='maybe'"):
        load_recipe(base, ["training.base_eval=maybe"])
