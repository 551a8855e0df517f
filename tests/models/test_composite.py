"""A composite model of two parts: built, targeted by part, saved, loaded and refused."""

import json
from typing import ClassVar

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import FormatError, ModelError, RecipeError, TargetError, TornFileError
from adaptome.models import CompositeModel, CompositeSettings, Part, load_composite, register_model
from adaptome.models.base import MODELS
from adaptome.recipe import load_recipe

VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20,
}  # fmt: skip


class TowersSettings(CompositeSettings):
    vision: Part
    text: Part | None = None
    width: int = 6


@pytest.fixture(autouse=True)
def towers(monkeypatch):
    monkeypatch.setattr(MODELS, "_known", dict(MODELS.all()))

    @register_model("towers")
    class Towers(CompositeModel):
        Settings = TowersSettings
        loaders: ClassVar = {"vision": "AutoModel", "text": "AutoModel"}

        def build(self):
            self.projection = nn.Linear(self.vision.config.hidden_size, self.settings.width)

        def forward(self, pixel_values, input_ids):
            image = self.projection(self.vision(pixel_values).last_hidden_state[:, 0])
            return {"image_embeds": image, "text": self.text(input_ids).last_hidden_state[:, 0]}

    return Towers


INPUTS = {"pixel_values": torch.randn(2, 3, 8, 8), "input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}


def built(towers):
    torch.manual_seed(0)
    return towers.from_settings(vision={"from_config": VIT}, text={"from_config": BERT}).eval()


def test_roles_are_those_of_each_part(towers):
    model = built(towers)
    paths = lambda targets: [entry.path for entry in ad.plan(model, "lora", targets=targets).entries]  # noqa: E731
    both, vision, text = paths("attention"), paths("vision.attention"), paths("text.attention")
    assert len(vision) == 8 and len(text) == 4 and sorted(both) == sorted([*vision, *text])
    assert all(path.startswith("vision.") for path in vision)
    with pytest.raises(TargetError, match="visoin"):
        paths("visoin.attention")


def test_a_folder_gives_the_same_model(towers, tmp_path):
    model = built(towers)
    before = model(**INPUTS)
    model.save_pretrained(tmp_path / "m")
    again = load_composite(
        load_recipe({"model": str(tmp_path / "m"), "task": "causal-lm", "data": "y"}).model
    ).eval()
    assert type(again) is towers
    for key, value in again(**INPUTS).items():
        assert torch.equal(value, before[key])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


def test_an_adapter_on_it_is_saved_and_loaded(towers, tmp_path):
    model = built(towers)
    ad.attach(model, "lora", r=2, targets=["vision.attention", "text.mlp"], train=["projection"])
    for p in ad.parameters_of(model).values():
        nn.init.normal_(p)
    after = model(**INPUTS)
    ad.save(model, tmp_path / "a")
    fresh = built(towers)
    ad.load(fresh, tmp_path / "a")
    for key, value in fresh(**INPUTS).items():
        assert torch.equal(value, after[key])


def test_parts_come_with_their_weights_from_folders(towers, tmp_path):
    from transformers import AutoConfig, AutoModel

    vit = AutoModel.from_config(AutoConfig.for_model(**VIT))
    vit.save_pretrained(tmp_path / "vit")
    spec = load_recipe(
        {
            "model": {"composite": "towers", "vision": str(tmp_path / "vit"), "text": {"from_config": BERT}},
            "task": "causal-lm",
            "data": "y",
        }
    ).model
    model = load_composite(spec, "towers", width=3)
    assert model.projection.out_features == 3
    for key, value in vit.state_dict().items():
        assert torch.equal(model.vision.state_dict()[key], value)


def test_what_is_wrong_is_told(towers, tmp_path):
    recipe = {"task": "causal-lm", "data": "y"}
    with pytest.raises(RecipeError, match=r"unknown key 'model\.widht' for towers\. Did you mean 'width'"):
        load_composite(
            load_recipe({"model": {"composite": "towers", "vision": "a/b", "widht": 3}, **recipe}).model
        )
    with pytest.raises(RecipeError, match=r"composite model 'twoers' is not known\. Did you mean 'towers'"):
        load_composite(load_recipe({"model": {"composite": "twoers"}, **recipe}).model)
    with pytest.raises(ModelError, match="the task works with 'others'"):
        load_composite(load_recipe({"model": {"composite": "towers"}, **recipe}).model, "others")
    with pytest.raises(RecipeError, match="give one of name, from_config and composite"):
        load_recipe({"model": {"composite": "towers", "name": "x"}, **recipe})
    with pytest.raises(RecipeError, match=r"unknown key 'nmae'\. Did you mean 'name'"):
        load_recipe({"model": {"nmae": "x"}, **recipe})
    built(towers).save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TornFileError, match="does not hold the weights"):
        towers.from_pretrained(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "format": 99}))
    with pytest.raises(FormatError, match="Update adaptome"):
        towers.from_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="holds no composite model"):
        towers.from_pretrained(tmp_path)


def test_checkpointing_reaches_every_part(towers):
    model = built(towers)
    model.gradient_checkpointing_enable()
    assert model.vision.is_gradient_checkpointing and model.text.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.vision.is_gradient_checkpointing
