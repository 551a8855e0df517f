"""Every recipe that comes with adaptome: valid, opens with what it is for and how it is run, and takes two steps on small stand-ins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import adaptome as ad
from adaptome.compare.rows import method_of, sections_of
from adaptome.recipe import load_recipe
from adaptome.training import run
from tests.sounds import AST, WAV2VEC2, class_folders, esc50, urbansound8k

RECIPES = Path(ad.__file__).parent / "recipes"
ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
SOUNDS = [name for name in ALL if name.startswith("audio-classification/")]
SMALL = {
    "MIT/ast-finetuned-audioset-10-10-0.4593": {**AST, "max_length": 1024},
    "facebook/wav2vec2-base": WAV2VEC2,
}


def known(name: str) -> Path:
    """The recipe's file; one whose method is not in this version is passed over."""
    content = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    section = content.get("compare", content)
    for method in [section["method"]] if "method" in section else section["methods"]:
        if method["name"] not in ad.list_methods():
            pytest.skip(f"{method['name']} is not registered")
    return RECIPES / name


def data_sets(folder: Path) -> None:
    """Small data in the layouts that the recipes name, below `folder/data`."""
    esc50(folder / "data" / "ESC-50")
    urbansound8k(folder / "data" / "UrbanSound8K", each=4)
    words = class_folders(folder / "data" / "speech_commands_v0.02", each=4)
    (Path(words) / "validation_list.txt").write_text("up/0.wav\ndown/0.wav\n")
    (Path(words) / "testing_list.txt").write_text("up/1.wav\ndown/1.wav\n")


def test_every_recipe_is_run_by_a_test():
    assert len(SOUNDS) >= 4
    elsewhere = (
        "reasoning/",
        "kg-queries/",
        "causal-lm/",
        "deepfake-detection/",
        "expression-recognition/",
        "face-recognition/",
        "change-detection/",
        "dense-multitask/",
        "multimodal-segmentation/",
        "multimodal-classification/",
        "sentiment-regression/",
        "dialogue/",
        "token-classification/",
        "continual/",
        "text-classification/",
        "text-to-image/",
        "controlled-generation/",
        "story-continuation/",
        "image-classification/",
        "image-text-classification/",
        "black-box/",
        "video-qa/",
        "protein/",
        "self-supervised/",
        "speech-recognition/",
        "image-text-retrieval/",
    )
    assert [name for name in ALL if name not in SOUNDS and not name.startswith(elsewhere)] == []


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_valid_and_says_how_it_is_run(name):
    text = known(name).read_text(encoding="utf-8")
    recipe = load_recipe(Path(name).stem)
    assert recipe.title and recipe == load_recipe(RECIPES / name)
    assert re.match(r"# [A-Z].*\.\n", text), "opens with what it is for, in a sentence"
    commands = re.findall(
        r"^# .+?(adaptome (?:train|compare|search|continual|perturb) .*)$", text, re.MULTILINE
    )
    assert len(commands) >= 2 and all(Path(name).stem in command.split() for command in commands)
    if "--folds" in text:
        assert recipe.data.folds is not None


@pytest.mark.parametrize("name", SOUNDS)
def test_a_recipe_takes_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_sets(tmp_path)
    content = yaml.safe_load(known(name).read_text(encoding="utf-8"))
    if "compare" in content:
        content["method"] = content.pop("compare")["methods"][0]
    content["model"] = {"from_config": SMALL[content["model"]]}
    content["training"] |= {"max_steps": 2, "batch_size": 4, "device": "cpu"}
    result = run(load_recipe(content))
    assert result.steps == 2 and result.split == "test"
    assert 0 < result.trainable_parameters < result.total_parameters


def test_the_sizes_of_ast_are_the_shares_that_are_asked_for():
    """At full size, for every method of the size-scaling study."""
    import torch
    from transformers import ASTConfig, ASTForAudioClassification

    with torch.device("meta"):
        model = ASTForAudioClassification(ASTConfig(num_labels=50, max_length=500))
    total = sum(p.numel() for p in model.parameters())
    rows = sections_of(load_recipe("esc50-sizes"))
    assert len(rows) == 3 * 4
    for label, section in rows.items():
        own = method_of(section).model_dump(exclude_unset=True, exclude={"name", "train"})
        share = ad.plan(model, section.name, **own).trainable / total
        assert share == pytest.approx(float(str(section.budget).rstrip("%")) / 100, rel=0.2), label
