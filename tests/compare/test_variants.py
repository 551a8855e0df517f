"""Rows that differ in settings: variants, the seed where it is asked for, the speed of what was trained, and `--vary`."""

from __future__ import annotations

import json

import numpy as np
import pytest

import adaptome as ad
from adaptome.compare import compare
from adaptome.compare.rows import recipe_of, sections_of
from adaptome.compare.vary import variants_of
from adaptome.core.errors import RecipeError
from adaptome.recipe import load_recipe, recipe_from_yaml

VIT = "{model_type: vit, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, image_size: 32, patch_size: 4}"


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    """The curve of `pyra-vtab` on a small ViT of 65 tokens: nothing merged, ToMe and PYRA at a high rate."""
    folder = tmp_path_factory.mktemp("curve")
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8), np.arange(40) % 2
    np.savez(
        folder / "data.npz", x_train=images[:24], y_train=labels[:24], x_test=images[24:], y_test=labels[24:]
    )
    changes = [
        f"compare.variants.{row}.set.methods.1.{key}={value}"
        for row in range(1, 5)
        for key, value in {"r": "[16, 8]" if row < 3 else "[30, 15]"}.items()
    ]
    recipe = load_recipe(
        "pyra-vtab",
        [f"model={{from_config: {VIT}}}", f"data={{name: {folder}/data.npz, validation_fraction: 0}}", "training.max_steps=2",
         "training.batch_size=8", "training.warmup=0", "training.device=cpu", "compare.seeds=[0]", "compare.methods.0.r=2", f"output={folder}/out", *changes],
    )  # fmt: skip
    return folder / "out", compare(recipe, callbacks=[])


def test_a_curve_of_accuracy_against_throughput(curve):
    folder, found = curve
    assert [row.label for row in found.rows] == [
        "nothing merged",
        "ToMe, low",
        "PYRA, low",
        "ToMe, high",
        "PYRA, high",
    ]
    work = [row.metrics["operations_per_example"] for row in found.rows]
    assert work[0] > work[1] and work[1] > work[3] and work[2] > work[4]
    assert work[2] < 1.1 * work[1]  # what modulates costs little
    assert all(row.metrics["examples_per_second"] > 0 for row in found.rows)
    assert "examples a second" in (folder / "report.html").read_text()
    kept = json.loads((folder / "PYRA-high" / "seed-0" / "speed.json").read_text())
    assert kept["operations_per_example"] == work[4]
    tome, pyra = found.rows[3], found.rows[4]
    assert pyra.parameters - tome.parameters == (30 + 15) + 2 * 3 * 32  # W_r, and W_D with LN of each block


def test_the_papers_variants_at_full_size():
    recipe = load_recipe("pyra-vtab")
    rows = sections_of(recipe)
    assert [s.set.get("methods", [{}])[-1].get("r") for s in rows.values()] == [None, "vit-b-low", "vit-b-low", "vit-b-high", "vit-b-high"]  # fmt: skip
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig())
    assert ad.plan(model, "pyra", r="vit-b-high").trainable == 27_840
    assert (
        ad.plan(model, "lora", r=8, targets="qkv").trainable == 3 * 12 * 8 * 2 * 768
    )  # three maps, as transformers keeps them


RECIPE = """
model: {from_config: {model_type: bert, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}, tokenizer: minilm}
task: text-classification
data: {train: train.jsonl}
compare:
  seeds: [3]
  seeded: [data.split_seed]
  methods: [{name: lora, r: 2}, {name: bitfit}]
  variants: [{label: few, set: {data.limit: 8}}, {label: all}]
output: out
"""


def test_every_method_has_a_row_for_every_variant():
    recipe = recipe_from_yaml(RECIPE)
    rows = sections_of(recipe)
    assert list(rows) == ["lora, few", "lora, all", "bitfit, few", "bitfit, all"]
    one = recipe_of(recipe, "lora, few", rows["lora, few"], 3)
    assert (one.data.limit, one.data.split_seed, one.training.seed) == (8, 3, 3)
    assert one.methods[0].name == "lora" and "set" not in one.methods[0].model_dump()
    with pytest.raises(RecipeError, match="limt"):
        recipe_of(recipe, "x", rows["lora, few"].model_copy(update={"set": {"data.limt": 8}}), 3)


def test_variants_in_a_word():
    made = variants_of(["data.limit=[8, 16]", "training.max_steps=[1]"])
    assert [one["label"] for one in made] == ["limit=8, max_steps=1", "limit=16, max_steps=1"]
    assert made[1]["set"] == {"data.limit": 16, "training.max_steps": 1}
    for wrong in ("data.limit", "data.limit=8", "=[1]", "data.limit=[]"):
        with pytest.raises(RecipeError, match="--vary"):
            variants_of([wrong])
