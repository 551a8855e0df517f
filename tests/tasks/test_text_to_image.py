"""The task text-to-image end to end on a tiny model: trained, resumed, scored, shown, used and written for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import adaptome as ad
from adaptome.cli._app import build
from adaptome.core.errors import DataError, RecipeError, TrainingError
from adaptome.recipe import load_recipe
from adaptome.tasks.image_generation import settings_of
from adaptome.training import evaluate, load_run, run
from tests.diffusion import model_of_pixels


def recipe(folder: Path, *more: str, **sections):
    content = {
        "model": model_of_pixels(folder / "words"),
        "task": {"name": "text-to-image", "resolution": 16, "steps": 2, "guidance": 2, "scores": ["scenes", "colours"], "samples": ["a sks circle", "a cross"], "sample_every": 2},
        "data": {"name": "made:scene-subject", "validation_fraction": 0}, "methods": [{"name": "diffusekrona", "targets": "unet.attention", "a1": 4, "a2": 2}], "objective": "v-prediction",
        "training": {"max_steps": 4, "batch_size": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.01, "device": "cpu", "ema": 0.9, "scheduler": "constant", "warmup": 0},
        "evaluation": {"batch_size": 64, "examples": 2}, "output": str(folder / "run"),
    }  # fmt: skip
    return load_recipe({**content, **sections}, list(more))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(recipe(folder), callbacks=[])


def test_a_run_scores_its_pictures_and_shows_them_as_it_goes(finished):
    folder, result = finished
    assert {"right", "subject", "background", "leak", "class_right", "colours"} <= set(result.metrics)
    assert "loss" not in result.metrics and result.split == "test"  # its texts have no pictures
    samples = sorted(path.name for path in (folder / "run" / "samples").iterdir())
    assert samples == ["step-000000.png", "step-000002.png", "step-000004.png"]
    first, last = (np.asarray(Image.open(folder / "run" / "samples" / samples[i])) for i in (0, -1))
    assert first.shape == (64, 128, 3) and (first != last).any()
    page = (folder / "run" / "report.html").read_text("utf-8")
    assert "Pictures during training" in page and "step 2" in page
    assert evaluate(folder / "run") == pytest.approx(result.metrics, abs=2e-3)


def test_a_resumed_run_ends_with_the_same_bits(finished, tmp_path):
    folder, _ = finished
    wanted = load_file(folder / "run" / "adapter" / "adapter.safetensors")
    run(recipe(tmp_path, "training.max_steps=2"), callbacks=[])
    (tmp_path / "run" / "metrics.json").unlink()
    again = run(recipe(tmp_path, "training.resume=true"), callbacks=[])
    assert again.steps == 4
    found = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_the_mean_takes_the_place_of_the_last_weights(finished):
    """It is what the steps' own weights give, and not these."""
    from adaptome.training.averaging import Averaged

    model = torch.nn.Linear(2, 2)
    averaged, state, weights = Averaged(0.5), type("S", (), {"global_step": 0})(), []
    averaged.on_train_begin(None, state, None, model=model)
    mean = model.weight.detach().clone()
    for step in (1, 2, 30):
        state.global_step = step
        with torch.no_grad():
            model.weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * model.weight.detach()
        averaged.on_step_end(None, state, None, model=model)
        weights.append(model.weight.detach().clone())
    averaged.on_train_end(None, state, None, model=model)
    torch.testing.assert_close(model.weight.detach(), mean)
    assert not torch.equal(model.weight, weights[-1])


def test_the_mean_and_the_best_checkpoint_do_not_go_together(tmp_path):
    with pytest.raises(RecipeError, match="keep_best=false"):
        run(recipe(tmp_path, "data={name: made:scenes, limit: 4}"), callbacks=[])


def test_the_objective_must_be_the_models(tmp_path):
    with pytest.raises(TrainingError, match="Use v-prediction"):
        run(recipe(tmp_path, "objective=noise-prediction", "task.samples=[]"), callbacks=[])


@pytest.mark.parametrize("method", ["lora", "tlora", "dora", "t-lora", "conv"])
def test_other_methods_train_here(method, tmp_path):
    told = {"conv": "methods=[{name: lora, targets: [unet.*conv1, unet.*to_q], r: 2}]"}.get(
        method, f"methods=[{{name: {method}, targets: unet.attention{', q: 1' if method == 'tlora' else ', r: 2'}}}]"
    )  # fmt: skip
    more = ["objective={name: dco, beta: 10}"] if method == "tlora" else []
    short = [
        "training.max_steps=1",
        "training.ema=null",
        "task.samples=[]",
        "task.scores=[]",
        "evaluation.split=none",
    ]
    result = run(recipe(tmp_path, told, *more, *short), callbacks=[])
    first = next(entry["loss"] for entry in result.history if "loss" in entry)
    assert result.trainable_parameters > 0 and np.isfinite(first)
    if method == "tlora":  # log 2 for the subject's pictures, and for the class's
        assert first == pytest.approx(2 * np.log(2), rel=1e-5)


def call(*words):
    result = CliRunner().invoke(build(), list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_pictures_are_generated_with_their_settings_in_them(finished, tmp_path):
    folder = str(finished[0] / "run")
    told = json.loads(call("generate", folder, "a sks cross", "a cross", "--grid", "2x1", "--seed", "5", "--steps", "2", "-o", str(tmp_path), "--json"))  # fmt: skip
    assert [Path(one["file"]).name for one in told] == ["a-sks-cross-2x1.png", "a-cross-2x1.png"]
    picture = Image.open(told[0]["file"])
    kept = settings_of(picture)
    assert picture.size == (128, 64) and kept["seeds"] == [5, 6] and kept["text"] == "a sks cross" and kept["run"] == folder  # fmt: skip
    single = call(
        "generate", folder, "a sks cross", "--seed", "6", "--steps", "2", "-o", str(tmp_path)
    ).strip()
    alone = np.asarray(Image.open(single))
    tile = np.asarray(picture)[::4, 64::4]
    assert np.abs(alone.astype(int) - tile).max() <= 1 and settings_of(Image.open(single))["seed"] == 6
    begun = call("generate", folder, "a cross", "--image", single, "--strength", "0.5", "--size", "16x16", "-o", str(tmp_path / "b")).strip()  # fmt: skip
    assert settings_of(Image.open(begun))["image"] == single
    base = call("generate", folder, "a sks cross", "--seed", "6", "--steps", "2", "--base", "-o", str(tmp_path / "c")).strip()  # fmt: skip
    assert (np.asarray(Image.open(base)) != alone).any()
    wrong = CliRunner().invoke(build(), ["generate", folder, "x", "--grid", "3"])
    assert wrong.exit_code == 2 and "3x3" in wrong.output


def test_adapters_go_to_files_of_other_programs_and_come_back(finished, tmp_path):
    folder = finished[0] / "run"
    loaded = load_run(folder)
    ad.export(loaded.model, tmp_path / "krona.safetensors", format="lycoris")
    tensors = load_file(tmp_path / "krona.safetensors")
    adapter = next(iter(ad.adapters(loaded.model).values()))
    path, own = next(iter(adapter.adapters.items()))
    name = "lora_" + path.replace(".", "_")
    kron = torch.kron(tensors[f"{name}.lokr_w1"], tensors[f"{name}.lokr_w2"])
    torch.testing.assert_close(kron, own.delta().detach())
    before = loaded.task.predict(loaded.model, None, ["a sks circle"])[0]["image"]
    ad.detach(loaded.model)
    report = ad.load(loaded.model, tmp_path / "krona.safetensors", "back")
    assert report is not None and ad.adapters(loaded.model)["back"].method.name == "diffusekrona"
    after = loaded.task.predict(loaded.model, None, ["a sks circle"])[0]["image"]
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).max() <= 1
    words = (
        "generate",
        str(folder),
        "a sks circle",
        "--base",
        "--adapter",
        str(tmp_path / "krona.safetensors"),
    )
    beside = np.asarray(Image.open(call(*words, "--seed", "0", "-o", str(tmp_path)).strip()))
    assert np.abs(beside.astype(int) - np.asarray(before)).max() <= 1
    out = call(
        "convert",
        str(folder),
        str(tmp_path / "lora.safetensors"),
        "--to",
        "diffusers",
        "--rank",
        "16",
        "--max-error",
        "1",
    )
    keys = load_file(tmp_path / "lora.safetensors")
    assert "wrote" in out and all(key.startswith("unet.") for key in keys)


def test_predict_gives_pictures(finished, tmp_path):
    out = call("predict", str(finished[0] / "run"), "a sks cross", "--output", str(tmp_path))
    assert "a sks cross" in out and (tmp_path / "a-sks-cross-image.png").is_file()
    row = json.loads((tmp_path / "predictions.jsonl").read_text("utf-8"))
    assert row["prediction"]["seed"] == 0 and row["prediction"]["steps"] == 2


def test_photos_in_a_folder_with_a_common_text_and_class_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("dog", 3), ("class", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    (tmp_path / "prompts.txt").write_text("a sks dog on a beach\na sks dog in snow\n")
    data = {"train": str(tmp_path / "dog"), "test": str(tmp_path / "prompts.txt"), "validation_fraction": 0}
    more = ["task.scores=[colours]", "training.max_steps=1", "task.samples=[]", "evaluation.examples=0"]
    with pytest.raises(DataError, match=r"task\.prompt="):
        run(recipe(tmp_path, *more, data=data), callbacks=[])
    prior = f"task.prior={{data: {tmp_path / 'class'}, prompt: a dog}}"
    result = run(recipe(tmp_path, *more, prior, "task.prompt=a sks dog", data=data), callbacks=[])
    assert set(result.metrics) == {"colours"}
    with pytest.raises(RecipeError, match=r"Did you mean 'colours'"):
        run(recipe(tmp_path, "task.scores=[colour]", "task.prompt=a sks dog", "output=" + str(tmp_path / "o"), data=data), callbacks=[])  # fmt: skip
