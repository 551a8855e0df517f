"""The roles of every family of architectures, on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptome.core.targets import ROLES, Match, resolve, roles
from tests.core.families import FAMILIES

MODELS: dict[str, nn.Module] = {}


def model_of(name: str) -> nn.Module:
    if name not in MODELS:
        with torch.device("meta"):
            MODELS[name] = FAMILIES[name].build()
    return MODELS[name]


def written(match: Match) -> str:
    return f"{match.path}.{match.parameter}" if match.parameter else match.path


@pytest.mark.parametrize("name", FAMILIES)
def test_every_role_is_what_the_architecture_says(name):
    found = roles(model_of(name))
    counts = {role: len(found.pop(role, [])) for role in ("norms", "embeddings", "convs")}
    found.pop("biases", None)  # a role of parameters, not of places
    found.pop("backbones", None)  # below
    assert {role: sorted(map(written, matches)) for role, matches in found.items()} == FAMILIES[
        name
    ].expected()
    family = FAMILIES[name]
    assert counts == {"norms": family.norms, "embeddings": family.embeddings, "convs": family.convs}


BACKBONES: dict[str, list[str]] = {
    "model": ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "qwen3-moe", "gpt-oss", "qwen2-moe", "modernbert"],
    "transformer": ["gpt2", "gpt-j", "gpt-neo", "bloom", "falcon"],
    "gpt_neox": ["gpt-neox"],
    "model.decoder": ["opt"],
    "bert": ["bert", "bert-mlm"],
    "deberta": ["deberta", "deberta-v2"],
    "encoder decoder": ["t5", "t5-gated"],
    "model.encoder model.decoder": ["bart", "whisper"],
    "text_model vision_model": ["clip", "siglip"],
    "audio_spectrogram_transformer": ["ast"],
    "pvt.encoder": ["pvt"],
    "vision_encoder.backbone mask_decoder": ["sam2"],
    "vision_model language_model.model.decoder": ["blip-2"],
    "": ["dinov3", "unet", "dit", "sd3"],
}  # fmt: skip
OF = {name: path for path, names in BACKBONES.items() for name in names}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_backbone_embeds_the_input_and_runs_the_blocks(name):
    found = [match.path for match in roles(model_of(name)).get("backbones", [])]
    expected = OF.get(name, name)  # the others are called as their family
    bare = name in ("q-former", "torch-encoder", "torch-transformer", "torch-mlp")  # nothing embeds
    assert found == ([] if bare else expected.split() or [""])


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_and_mlp_are_disjoint_parts_of_all_linear(name):
    found = {role: set(map(written, matches)) for role, matches in roles(model_of(name)).items()}
    attention, mlps, whole = (found.get(role, set()) for role in ("attention", "mlp", "all-linear"))
    assert not attention & mlps
    assert attention | mlps <= whole
    assert not whole & (found.get("head", set()) | found.get("router", set()))
    assert set(found) <= set(ROLES)


@pytest.mark.parametrize("name", FAMILIES)
def test_matches_come_in_module_order_and_once(name):
    model = model_of(name)
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    matches = resolve(model, ["all-linear", *(["attention", "blocks"] if name != "torch-mlp" else []), "*"])
    places = [order[match.path] for match in matches]
    assert places == sorted(places)
    assert len({(match.path, match.parameter) for match in matches}) == len(matches)
    assert all(model.get_submodule(match.path) is match.module for match in matches)


@pytest.mark.parametrize("name", FAMILIES)
def test_biases_are_those_of_maps_convolutions_and_norms_outside_the_heads(name):
    model, found = model_of(name), roles(model_of(name))
    heads = [match.path for match in found.get("head", [])]
    expected = [
        path
        for path, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
        and "Router" not in type(module).__name__
        and not any(path == head or path.startswith(f"{head}.") for head in heads)
        and type(module).__name__ != "NonDynamicallyQuantizableLinear"
    ]
    assert [match.path for match in found.get("biases", [])] == expected
