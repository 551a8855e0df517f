"""The recipes of text-to-image: the demonstrations as they ship with few steps, the others on tiny pipelines in the layout that they name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import adaptome as ad
from adaptome.architectures import build
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import run, run_stages
from tests.diffusion import pipeline_folder

FEW = [
    "training.device=cpu", "stages.0.training.max_steps=1", "stages.1.training.max_steps=2", "task.steps=2", "evaluation.examples=0",
    "stages.0.data={name: made:scenes, limit: 8}", "stages.0.evaluation.split=none", "stages.0.task.samples=[]",
]  # fmt: skip
TINY = {
    "diffusekrona-sdxl": ("StableDiffusionXLPipeline", {"a1": 4, "a2": 2}), "tlora-sdxl": ("StableDiffusionXLPipeline", {}),
    "sd15-lora": ("StableDiffusionPipeline", {"r": 2}), "sd3-lora": ("StableDiffusion3Pipeline", {"r": 2}), "flux-lora": ("FluxPipeline", {"r": 2}),
    "pixart-lora": ("PixArtSigmaPipeline", {"r": 2}),
}  # fmt: skip


def test_the_demonstrations_run_as_they_ship(tmp_path):
    krona = load_recipe(
        "diffusekrona-demo", [*FEW, "stages.1.task.sample_every=2", f"output={tmp_path / 'krona'}"]
    )
    result = run_stages(krona, callbacks=[])
    assert result.last.trainable_parameters == 10_112 and 0 <= result.last.metrics["right"] <= 1
    assert (tmp_path / "krona" / "2-subject" / "samples" / "step-000002.png").is_file()
    (_, first), (_, second) = stages_of(load_recipe("tlora-demo", [*FEW, "stages.1.task.samples=[]"]))
    assert first == stages_of(load_recipe("diffusekrona-demo", FEW))[0][1].model_copy(update={"title": first.title, "output": first.output})  # fmt: skip
    start = second.start.model_copy(update={"run": str(tmp_path / "krona" / "1-base")})
    output = second.output.model_copy(update={"folder": str(tmp_path / "tlora")})
    assert (
        run(second.model_copy(update={"start": start, "output": output}), callbacks=[]).trainable_parameters
        == 6_784
    )


@pytest.mark.parametrize("name", TINY)
def test_a_recipe_takes_a_step_on_a_tiny_pipeline(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, settings = TINY[name]
    pipeline_folder(kind, tmp_path / "pipeline")
    rng, shapes = (
        np.random.default_rng(0),
        [(24, 24), (24, 16)] if name in ("sd15-lora", "pixart-lora") else [(24, 20)],
    )
    for folder in ("dog", "pictures"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(6):
            size = shapes[i % len(shapes)]
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
                tmp_path / "data" / folder / f"{i}.png"
            )
    for i in range(6):
        (tmp_path / "data" / "pictures" / f"{i}.txt").write_text(f"a picture {i}")
    (tmp_path / "data" / "dog-prompts.txt").write_text("a sks dog on a beach\n")
    told = [
        "training.max_steps=1", "training.device=cpu", "training.bf16=false", "training.optimizer=adamw_torch", "model.dtype=float32",
        "task.resolution=16", "task.steps=1", "training.eval_steps=null", "training.save_steps=1", "training.logging_steps=1",
    ]  # fmt: skip
    recipe = load_recipe(name, told)
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    model = content["model"]
    model["pipeline" if "composite" in model else "name"] = str(tmp_path / "pipeline")
    content["methods"][0] |= settings
    if "scores" in content["task"]:
        content["task"]["scores"] = ["colours"]
    if "buckets" in content["task"]:
        content["task"]["buckets"] = 4
    result = run(load_recipe(content), callbacks=[])
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert result.steps == 1 and all(np.isfinite(losses)) and result.trainable_parameters > 0
    if recipe.objective[0].name == "dco":
        assert losses[0] == pytest.approx(np.log(2), rel=1e-4)
    assert (
        sorted(p.name for p in (tmp_path / recipe.output.folder / "samples").iterdir())[0]
        == "step-000000.png"
    )


@pytest.mark.parametrize(
    ("recipe", "changes", "count"),
    [
        ("diffusekrona-sdxl", {}, 2_152_320), ("diffusekrona-sdxl", {"a2": 4}, 3_874_560), ("tlora-sdxl", {}, 396_720),
        ("tlora-sdxl", {"q": 1, "residual": "lora"}, 1_697_040),
    ],
)  # fmt: skip
def test_the_papers_counts_on_the_whole_unet_of_sdxl(recipe, changes, count):
    (section,) = load_recipe(recipe).methods
    model = nn.ModuleDict({"unet": build("sdxl-unet")})
    assert (
        ad.plan(model, section.name, targets=section.targets, **{**section.settings, **changes}).trainable
        == count
    )


def test_the_papers_counts_on_stable_diffusion_with_its_text_encoder():
    with torch.device("meta"):
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    model = nn.ModuleDict({"unet": build("sd-1.5-unet"), "text_encoder": text})
    both = {"targets": ["unet.attention", "text_encoder.attention"]}
    assert ad.plan(model, "diffusekrona", a1=64, a2=4, **both).trainable == 520_928
    assert ad.plan(model, "lora", r=4, **both).trainable == 1_092_096
    for (R, q, residual), count in {
        (2, 4, "lora"): 941_440,
        (2, 6, "ring"): 400_288,
        (1, 1, "lora"): 235_360,
    }.items():
        assert (
            ad.plan(model, "tlora", targets="unet.attention", R=R, q=q, residual=residual).trainable == count
        )


def test_the_study_has_the_papers_rates_shapes_and_places():
    study = load_recipe("diffusekrona-sensitivity")
    rows = study.compare.methods
    rates = {row.learning_rate or study.training.learning_rate for row in rows}
    assert {1e-4, 5e-4, 1e-3, 5e-3} <= rates and {row.name for row in rows} == {"diffusekrona", "lora"}
    shapes = {(row.settings["a1"], row.settings["a2"]) for row in rows if row.name == "diffusekrona"}
    assert {(64, 8), (64, 4), (32, 16), (16, 16)} <= shapes
    model = nn.ModuleDict({"unet": build("sdxl-unet")})
    counts = {}
    for row in (
        one for one in rows if one.label in ("64 x 4", "16 x 16", "64 x 8, k and v", "64 x 8, rate 1e-3")
    ):
        counts[row.label] = ad.plan(model, row.name, targets=row.targets, **row.settings).trainable
    assert counts["64 x 4"] == counts["16 x 16"] == 3_874_560  # the product alone counts
    assert counts["64 x 8, k and v"] < counts["64 x 8, rate 1e-3"] == 2_152_320
    assert yaml.safe_load(study.to_yaml())["task"]["name"] == "text-to-image"
