"""The recipes of image-text-classification: the demonstration as it ships with few steps, the others on a tiny CLIP in the layouts that they name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptome.compare import compare
from adaptome.compare.rows import sections_of
from adaptome.core.errors import DataError
from adaptome.data.makers.few_shots import captioned_scenes, worn_scenes
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import load_run, run, run_stages
from tests.tasks.test_image_text_classification import CLASSES, CLIP, split_file

FEW = [
    "training.device=cpu",
    "stages.0.training.max_steps=2",
    "stages.1.training.max_steps=2",
    "evaluation.examples=0",
]
TINY = ["training.max_steps=1", "training.device=cpu", "training.bf16=false", "training.workers=0", "evaluation.examples=0", "data.shots=1"]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    small = ["stages.0.data={name: made:captioned-scenes, limit: 64}", "stages.0.evaluation.split=none"]
    result = run_stages(load_recipe("clip-svd-demo", [*FEW, *small, f"output={folder}"]), callbacks=[])
    # five blocks of six maps: 64 in each, the MLPs' shorter side being 64 too
    assert result.last.trainable_parameters == 5 * 6 * 64 and 0 <= result.last.metrics["accuracy"] <= 1
    assert {"accuracy_before"} < set(result.last.metrics)
    return folder


def test_the_demonstration_runs_as_it_ships_and_tells_new_names(demo):
    loaded = load_run(demo)
    picture = np.zeros((16, 16, 3), np.uint8)
    told = loaded.task.predict(
        loaded.model, loaded.processor, [picture, {"image": picture, "classes": ["a", "b"]}]
    )
    assert len(told[0]["scores"]) == 24 and set(told[1]["scores"]) == {"a", "b"}
    first = load_run(demo / "1-pairs")
    Image.fromarray(picture).save(demo / "black.png")
    (given,) = first.task.given([str(demo / "black.png"), "a red circle", "a blue square"])
    (ranked,) = first.task.predict(first.model, first.processor, [given.value])
    assert set(ranked["scores"]) == {"a red circle", "a blue square"} and ranked["score"] == max(
        ranked["scores"].values()
    )
    with pytest.raises(DataError, match="give texts beside the pictures"):
        first.task.given([str(demo / "black.png")])


@pytest.mark.slow
def test_every_method_of_the_demonstration_is_a_row_of_one_table(demo, tmp_path):
    shutil.copytree(demo / "1-pairs", tmp_path / "c" / "1-pairs")
    shots = [
        "stages.1.data.shots=1",
        "compare.seeds=[0]",
        "stages.1.data.limit=60",
        "training.logging_steps=1",
    ]
    recipe = load_recipe("clip-svd-demo", [*FEW, *shots, f"output={tmp_path / 'c'}"])
    assert recipe.compare is not None
    for section in recipe.compare.methods:  # the compared rows keep their own steps: 0 where nothing trains
        assert section.set.get("training.max_steps", 0) == 0
    found = compare(recipe, callbacks=[])
    rows = {row.label: row for row in found.rows}
    assert list(rows) == [
        "zero-shot",
        "coop",
        "clip-adapter",
        "tip-adapter",
        "tip-adapter-f",
        "lora",
        "clip-svd",
    ]
    assert {label: row.parameters for label, row in rows.items()} == {
        "zero-shot": 0, "coop": 4 * 64, "clip-adapter": 2 * 48 * 12, "tip-adapter": 0, "tip-adapter-f": 24 * 48,
        "lora": 2 * 5 * 2 * (64 + 64), "clip-svd": 1920,
    }  # fmt: skip
    # all of them start from the same base
    assert len({row.metrics["accuracy_before"] for row in rows.values()}) == 1
    assert rows["zero-shot"].values == [rows["zero-shot"].metrics["accuracy_before"]]


def places(folder: Path) -> None:
    """Small data in the layouts that the recipes name."""
    sets = {
        "oxford_pets": "OxfordPets",
        "caltech-101": "Caltech101",
        "dtd": "DescribableTextures",
        "BTMRI": "BTMRI",
    }
    for place, name in sets.items():
        made = split_file(folder / "data" / place, name, CLASSES, 2, 1)
        if place == "BTMRI":
            made.rename(made.parent / "split_BTMRI.json")
    for synset in ("n01440764", "n01443537"):
        for i in range(2):
            path = folder / "data" / "imagenet" / "train" / synset / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), 90 * i, np.uint8)).save(path)
    (folder / "data/imagenet/classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    craft = folder / "data" / "fgvc_aircraft"
    (craft / "images").mkdir(parents=True)
    for i in (1, 2):
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(craft / "images" / f"{i}.jpg")
    (craft / "images_variant_test.txt").write_text("1 707-320\n2 A300 B4\n")


@pytest.mark.parametrize("name", ["few-shot", "base-to-new", "cross", "biomedclip"])
def test_a_recipe_takes_a_step_on_a_tiny_clip(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places(tmp_path)
    content = load_recipe(f"clip-svd-{name}", TINY).model_dump(mode="json", exclude_defaults=True)
    content["model"] = {
        "composite": "prompted-classifier",
        "tokenizer": "minilm",
        "encoder": {"from_config": CLIP},
    }
    if name == "cross":
        kept = ("caltech-101", "dtd", "fgvc")
        content["data"]["test"] = [file for file in content["data"]["test"] if any(k in file for k in kept)]
    result = run(load_recipe(content), callbacks=[])
    assert result.steps == 1 and result.split == "test" and result.trainable_parameters == 192
    told = " ".join(result.notes)
    if name == "cross":
        assert {"accuracy@caltech-101", "accuracy@dtd", "accuracy@fgvc_aircraft", "transfer"} < set(
            result.metrics
        )
        assert "'a photo of a tench.'" in told and "'a photo of a 707-320, a type of aircraft.'" in told
    elif name == "base-to-new":
        assert {"base", "new", "harmonic_mean", "new_before"} < set(result.metrics)
    else:
        assert ("a brain MRI of" if name == "biomedclip" else "a type of pet") in told


def test_the_table_has_every_method_at_every_number_of_shots():
    rows = sections_of(load_recipe("clip-svd-few-shot"))
    assert len(rows) == 7 * 5
    assert rows["clip-svd, 16 shots"].set["data.shots"] == 16
    assert rows["zero-shot, 4 shots"].set["training.max_steps"] == 0
    (_, first), (_, second) = stages_of(load_recipe("clip-svd-demo"))
    assert first.task.name == "image-text-pairs" and second.task.name == "image-text-classification"


def test_the_made_scenes_are_the_same_by_seed_and_balanced():
    one, two, other = (worn_scenes(seed, train=2, validation=1, test=3) for seed in (1, 1, 2))
    images = [np.asarray(found["train"].columns["image"]) for found in (one, two, other)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    labels = list(one["test"].columns["label"])
    assert len(set(labels)) == 24 and {labels.count(label) for label in labels} == {3}
    captions = list(captioned_scenes(1, train=300, validation=2)["train"].columns["text"])
    short = sum("background" not in text for text in captions) / len(captions)
    assert 0.28 < short < 0.39
