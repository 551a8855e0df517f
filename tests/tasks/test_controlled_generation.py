"""The task controlled-generation end to end: the demonstration with few steps, a new kind beside it, pictures by the command line, its data's faults."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import adaptome as ad
from adaptome.cli._app import build
from adaptome.core.errors import DataError, RecipeError
from adaptome.data.conditions import get_condition
from adaptome.data.pictures import Treatment
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.controlled_generation import ControlledPictures
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.image_generation import settings_of
from adaptome.training import evaluate, load_run, run, run_stages

FEW = [
    "training.device=cpu", "data.limit=12", "stages.0.training.max_steps=1", "stages.1.training.max_steps=2", "task.steps=2",
    "stages.1.training.batch_size=4", "task.score_rows=5", "stages.0.evaluation.split=none", "training.logging_steps=1", "evaluation.examples=6",
]  # fmt: skip
NEW = "{name: new, start: frozen, method: {name: lora, targets: [control.attention, control.mlp], r: 2, alpha: 2}, task: {conditions: [{name: shuffle, parts: 2}]}, training: {max_steps: 2}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "demo"
    recipe = load_recipe("divcontrol-demo", [*FEW, f"output={folder}"])
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    import yaml

    content["stages"].append(yaml.safe_load(NEW))
    return folder, run_stages(load_recipe(content), callbacks=[])


def test_every_kind_is_scored_and_shown(finished):
    folder, result = finished
    control = result.stages["2-control"]
    assert {f"{f}@{k}" for f in ("ssim", "mse") for k in ("grayscale", "sketch", "blur", "palette")} <= set(
        control.metrics
    )
    assert control.metrics["ssim"] == pytest.approx(
        np.mean([v for k, v in control.metrics.items() if k.startswith("ssim@")])
    )
    assert control.trainable_parameters < control.total_parameters / 2
    page = (folder / "2-control" / "report.html").read_text("utf-8")
    assert "a circle (grayscale)" in page or "(grayscale)" in page
    assert evaluate(folder / "2-control") == pytest.approx(control.metrics, abs=2e-3)


def test_a_new_kind_changes_nothing_of_the_old(finished):
    """Learngenes, tailors and gate are the same bits afterwards, and so are the pictures of the old kinds without the new adapter."""
    folder, _ = finished
    before, after = (load_run(folder / name) for name in ("2-control", "3-new"))
    old = load_file(folder / "2-control" / "adapter" / "adapter.safetensors")
    kept = load_file(folder / "3-new" / "adapter" / "default" / "adapter.safetensors")
    assert old.keys() == kept.keys() and all(torch.equal(old[name], kept[name]) for name in old)
    ad.activate(after.model, ["default"])
    rows = [
        {
            "text": "a circle",
            "condition": Image.new("RGB", (16, 16), "red"),
            "instruction": "sketch to image",
        },
        "a cross",
    ]
    first, second = (loaded.task.predict(loaded.model, None, rows) for loaded in (before, after))
    assert [one["image"].tobytes() for one in first] == [one["image"].tobytes() for one in second]


def test_any_method_takes_its_place(finished, tmp_path):
    folder, _ = finished
    told = [
        *FEW,
        "method={name: linear-probe, train: [control.blocks]}",
        "task.control_scores=false",
        "evaluation.examples=0",
    ]
    (_, _), (_, second) = stages_of(load_recipe("divcontrol-demo", told))
    start = second.start.model_copy(update={"run": str(folder / "1-base")})
    output = second.output.model_copy(update={"folder": str(tmp_path / "dense")})
    result = run(second.model_copy(update={"start": start, "output": output}), callbacks=[])
    assert "loss" in result.metrics and "ssim" not in result.metrics and result.trainable_parameters > 300_000


def call(*words):
    result = CliRunner().invoke(build(), list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_pictures_are_generated_by_conditions(finished, tmp_path):
    folder = str(finished[0] / "2-control")
    rng = np.random.default_rng(0)
    file = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file)
    common = ["generate", folder, "a circle", "--seed", "3", "--steps", "2", "--json", "-o", str(tmp_path)]
    (one,) = json.loads(call(*common, "--condition", f"sketch:{file}"))
    kept = settings_of(Image.open(one["file"]))
    assert kept["condition"] == [f"sketch:{file}"] and kept["instructions"] == ["sketch to image"]
    told = [
        ["--condition", f"lineart:{file}"], ["--condition", f"sketch:{file}", "--ready"], [],
        ["--condition", f"sketch:{file}", "--condition", f"blur:{file}"],
    ]  # fmt: skip
    seen = {Image.open(one["file"]).tobytes()}
    for more in told:
        (made,) = json.loads(call(*common, *more))
        seen.add(Image.open(made["file"]).tobytes())
    assert (
        len(seen) >= 4
    )  # zero-initialised layers have moved little in two steps: two may round to the same bytes
    for wrong, said in (
        (["--condition", "sketch"], "KIND:FILE"),
        (["--condition", f"scetch:{file}"], "sketch"),
        (["--ready"], "how --condition is taken"),
    ):
        result = CliRunner().invoke(build(), [*common, *wrong])
        assert result.exit_code != 0 and said in result.output + str(result.exception)


def pictures(folder, conditions=False):
    folder.mkdir()
    rows = []
    for i in range(4):
        Image.new("RGB", (16, 16), (40 * i, 10, 10)).save(folder / f"{i}.png")
        Image.new("RGB", (16, 16), (0, 40 * i, 0)).save(folder / f"{i}-map.png")
        rows.append(
            {
                "file_name": f"{i}.png",
                "text": f"picture {i}",
                **({"condition": f"{i}-map.png"} if conditions else {}),
            }
        )
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if conditions or row)
    )
    if not conditions:
        for i in range(4):
            (folder / f"{i}-map.png").unlink()
    return folder


def test_maps_that_are_ready_are_read_beside_their_pictures(finished, tmp_path):
    from adaptome.tasks import get_task
    from adaptome.training.building import read

    recipe = load_recipe({
        "model": "x", "task": {"name": "controlled-generation", "conditions": [{"name": "map", "instruction": "boxes to image"}], "resolution": 16},
        "data": {"train": str(pictures(tmp_path / "maps", True)), "validation_fraction": 0}, "method": "lora",
    })  # fmt: skip
    task = get_task("controlled-generation", **recipe.task.settings)
    data = task.prepare(read(recipe, task), None)
    batch = task.collate([data["train"][i] for i in range(4)])
    assert batch["instructions"] == ["boxes to image"] * 4 and batch["texts"][2] == "picture 2"
    green = ((batch["conditions"] + 1) * 127.5).round()[:, 1, 0, 0].tolist()
    assert green == [0, 40, 80, 120]
    plain = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"train": str(pictures(tmp_path / "plain"))})}
    )
    with pytest.raises(DataError, match="column `condition`"):
        task.prepare(read(plain, task), None)
    mirrored = get_task("controlled-generation", **{**recipe.task.settings, "mirror": True})
    with pytest.raises(RecipeError, match="mirror=true"):
        mirrored.prepare(read(recipe, mirrored), None)
    blurred = get_task("controlled-generation", conditions=["blur"], resolution=16)
    with pytest.raises(DataError, match="no pictures"):
        blurred.prepare(
            read(
                recipe.model_copy(
                    update={"data": recipe.data.model_copy(update={"name": "made:scenes", "train": None})}
                ),
                task,
            ),
            None,
        )


def test_features_are_the_encoders_patches(tmp_path):
    """DINOv2's, without what stands before them; on as many patches as the latents have tokens."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    from adaptome.tasks import get_task

    torch.manual_seed(0)
    encoder = Dinov2Model(
        Dinov2Config(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=32,
            patch_size=4,
        )
    ).eval()
    encoder.save_pretrained(tmp_path)
    BitImageProcessor().save_pretrained(tmp_path)
    task = get_task(
        "controlled-generation",
        conditions=["blur"],
        resolution=16,
        features={"encoder": str(tmp_path), "side": 32},
    )
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    found = task._features([picture])
    pixels = BitImageProcessor()(
        Image.fromarray(picture), return_tensors="pt", do_resize=False, do_center_crop=False
    )["pixel_values"]
    with torch.no_grad():
        wanted = encoder(pixels).last_hidden_state[:, 1:]
    assert found.shape == (1, 64, 8) and not found.requires_grad
    torch.testing.assert_close(found, wanted)


def test_a_picture_with_two_ready_maps_has_both():
    same, maps = np.zeros((8, 8, 3), np.uint8), [np.full((8, 8, 3), value, np.uint8) for value in (10, 20)]
    rows = [{"image": same, "condition": one} for one in maps]
    made = ControlledPictures([get_condition("map")], rows, ["a", "b"], to_rgb, Treatment(8))
    for _ in range(2):
        assert [int(made[i]["condition"][0, 0, 0]) for i in range(2)] == [10, 20]
