"""The recipes of ExPLoRA: their counts at the models' full size, their parts on small ones, and the demonstration in a few steps."""

from __future__ import annotations

import json

import pytest
import torch

import adaptome as ad
from adaptome.data.makers.grounds import COUNTS
from adaptome.models import composite_models
from adaptome.objectives import Terms, terms_of
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.training import load_run, run_stages

VIT = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}


def planned(recipe, kind, size, **changes):
    """The first stage's model on the meta device, and the plan of its method."""
    (_, first), *_ = stages_of(recipe)
    given = VIT[size] | ({"intermediate_size": 4 * VIT[size]["hidden_size"]} if kind == "vit_mae" else {})
    settings = {**first.model.settings, "encoder": {"from_config": {"model_type": kind, **given}}, **changes}
    if settings.get("decoder"):
        settings["decoder"] = {**settings["decoder"], "source": "released"}
    with torch.device("meta"):
        model = composite_models()["view-encoder"].from_settings(weights=False, **settings)
    section = first.methods[0]
    task = get_task(first.task.name, **first.task.settings)
    return model, section, task


def count(model, section, train, targets=None):
    return ad.plan(
        model, section.name, targets=targets or section.targets, train=train, **section.settings
    ).trainable


@pytest.mark.parametrize(("size", "last", "total"), [("base", 11, 9_287_424), ("large", 23, 18_723_840)])
def test_dinov2_trains_as_many_numbers_as_the_paper_says(size, last, total):
    recipe = load_recipe(
        "explora-dinov2-fmow", [f"method.train=[encoder.encoder.layer.{last}, encoder.norms]"]
    )
    model, section, task = planned(recipe, "dinov2", size)
    assert count(model, section, section.train) == total
    assert task.head_patterns(model) == []  # beside the objective's head, which goes
    with torch.device("meta"):
        also = Terms.install(model, terms_of(recipe.objective))
    heads = sum(p.numel() for p in model.objective_parts.parameters())
    d = VIT[size]["hidden_size"]
    assert heads == d * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 256 * 65536
    assert count(model, section, [*section.train, *also]) == total + heads


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("ends", [False, True])
def test_mae_trains_as_the_formula_without_layer_scales_says(size, ends):
    d, layers = VIT[size]["hidden_size"], VIT[size]["num_hidden_layers"]
    whole = [0, layers - 1] if ends else [layers - 1]
    model, section, _ = planned(
        load_recipe("explora-mae-sentinel"), "vit_mae", size, decoder=None, bands=None
    )
    train = [*(f"encoder.layers.{block}" for block in whole), "encoder.norms"]
    found = count(model, section, train, ["encoder.q", "encoder.v"])
    block, r = 12 * d * d + 13 * d, section.settings["r"]
    assert found == len(whole) * block + (layers - len(whole)) * (4 * d * r + 4 * d) + 2 * d


def test_the_bands_of_sentinel_get_patches_of_their_own_and_the_decoder_adapters():
    model, section, task = planned(load_recipe("explora-mae-sentinel"), "vit_mae", "large")
    heads = task.head_patterns(model)
    plan = ad.plan(
        model, section.name, targets=section.targets, train=[*section.train, *heads], **section.settings
    )
    assert model.encoder.embeddings.position_embeddings.shape == (1, 145, 1024)
    r, block = 32, 12 * 1024 * 1024 + 13 * 1024
    encoder = 2 * block + 22 * (4 * 1024 * r + 4 * 1024) + 2 * 1024
    patches = 1024 * (10 * 64 + 3) + 3 * 1024
    decoder = 8 * 4 * 512 * r + 8 * 4 * 512 + 2 * 512 + (1024 * 512 + 512) + 512 + 3 * 512 + (513 * 64 * 10)
    assert plan.trainable == encoder + patches + decoder
    assert not any("fc1" in entry.path and "decoder" in entry.path for entry in plan.entries)


def test_the_second_stages_are_the_papers():
    _, (_, probe) = stages_of(load_recipe("explora-dinov2-fmow"))
    assert (
        probe.methods[0].name == "linear-probe"
        and probe.start.how == "merged"
        and probe.data.format == "fmow"
    )
    assert [term.name for term in probe.objective] == ["model"] and probe.training.max_steps is None
    _, (_, tuned) = stages_of(load_recipe("explora-mae-sentinel"))
    assert (tuned.methods[0].name, tuned.methods[0].settings["r"]) == ("lora", 8)
    first = stages_of(load_recipe("explora-mae-sentinel"))[0][1]
    assert (
        first.task.settings["bands"] == tuned.task.settings["bands"]
        and len(tuned.task.settings["bands"]["mean"]) == 10
    )


def test_the_demonstration_runs_as_it_ships(tmp_path, monkeypatch):
    for kinds in COUNTS.values():
        for split in kinds:
            monkeypatch.setitem(kinds, split, 32)
    few = [
        f"stages.{n}.training={json.dumps({'max_steps': 2, 'batch_size': 8, 'keep_best': False})}"
        for n in (1, 2)
    ]
    few += ["training.max_steps=2", "data.limit=32", "stages.1.data.limit=32", "stages.2.data.limit=32"]
    found = run_stages(
        load_recipe("explora-demo", [*few, "training.device=cpu", f"output={tmp_path}/demo"]), callbacks=[]
    )
    assert "accuracy" in found.last.metrics and "knn" in found.stages["2-extended"].metrics
    probe = load_run(tmp_path / "demo").model
    assert all(
        not p.requires_grad
        for n, p in probe.named_parameters()
        if n.startswith("vit.layers.0") and "adaptome" not in n
    )
