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
    assert {role: sorted(map(written, matches)) for role, matches in found.items()} == FAMILIES[
        name
    ].expected()
    family = FAMILIES[name]
    assert counts == {"norms": family.norms, "embeddings": family.embeddings, "convs": family.convs}


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
