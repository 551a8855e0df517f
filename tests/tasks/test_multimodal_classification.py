"""Classification of images with texts from a table to answers, with either missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptome.cli import main
from adaptome.core.errors import DataError
from adaptome.data.load import load_splits
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.byte_tokenizer import byte_tokenizer
from adaptome.tasks.modality_sets import AVAILABLE
from adaptome.tasks.multimodal_classification import (
    ImageTextProcessor,
    MultimodalClassificationOptions,
    PairCollator,
)
from adaptome.tasks.pixels import PixelProcessor
from adaptome.training import load_run, run, run_stages
from tests.models.test_image_text_classifier import TWO, VILT

DISHES = ["cake", "pizza", "soup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("food")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for split, count in (("train", 9), ("test", 6)):
        rows = []
        for n in range(count):
            label = DISHES[n % 3]
            name = f"images/{split}{n}.png"
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(root / name)
            rows.append({"image": name, "text": f"a recipe of {label}", "label": label, "labels": [label, "soup"][: 1 + n % 2]})  # fmt: skip
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def recipe(folder: Path, out: Path, **changes):
    return load_recipe(
        {
            "model": {"composite": "image-text-classifier", **TWO, "tokenizer": "bytes"},
            "task": {"name": "multimodal-classification", "image_size": 16, "max_length": 24, "train_on": "missing"},
            "data": {"train": f"{folder}/train.jsonl", "test": f"{folder}/test.jsonl", "validation_fraction": 0},
            "method": {"name": "missing-modality", "modalities": ["image", "text"], "targets": ["all-linear", "norms"], "exclude": "head", "branches": {"image": "image.*", "text": "text.*"}},
            "training": {"max_steps": 4, "batch_size": 3, "device": "cpu"},
            "output": str(out),
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "food"
    result = run(recipe(folder, out), callbacks=[])
    assert {f"{kind}@{s}" for kind in ("accuracy", "macro_f1") for s in ("image", "text", "image+text")} <= set(result.metrics)  # fmt: skip
    return out


def test_a_sets_figure_is_that_of_its_predictions(trained, folder):
    found = json.loads((trained / "metrics.json").read_text())["metrics"]
    loaded = load_run(trained)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    for names in (["image"], ["text"], ["image", "text"]):
        given = [{n: str(folder / row[n]) if n == "image" else row[n] for n in names} for row in rows]
        made = loaded.task.predict(loaded.model, loaded.processor, given, batch_size=4)
        right = np.mean([one["label"] == row["label"] for one, row in zip(made, rows, strict=True)])
        assert found[f"accuracy@{'+'.join(names)}"] == pytest.approx(right)
        assert {one[AVAILABLE] for one in made} == {"+".join(names)}


def test_a_command_takes_either(trained, folder, capsys):
    for words in ([f"image={folder}/images/test0.png"], ["text=a recipe of soup"]):
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(trained), *words])
        told = capsys.readouterr().out
        assert not stopped.value.code and any(dish in told for dish in DISHES)


def test_a_missing_text_is_the_empty_one_and_a_missing_image_a_constant():
    processor = ImageTextProcessor(byte_tokenizer(), PixelProcessor())
    rows = [{"image": np.full((8, 8, 3), 9, np.uint8), "text": "ab", "labels": 1, "present": frozenset({"image", "text"}), AVAILABLE: frozenset({one})} for one in ("image", "text")]  # fmt: skip
    batch = PairCollator(processor, MultimodalClassificationOptions(image_size=8))(rows)
    assert batch["tokens"]["input_ids"].shape == (2, 2) and batch["tokens"]["attention_mask"].tolist() == [[1, 0], [1, 1]]  # fmt: skip
    assert batch["pixels"][1].eq(0).all() and batch["pixels"][0].abs().mean() > 1
    ones = PairCollator(processor, MultimodalClassificationOptions(image_size=8, fill={"image": 1}))(rows)
    assert ones["pixels"][1].eq(1).all()
    for told, message in (({"fill": {"text": 1}}, "a missing text is the empty one"), ({"modalities": ["text", "image"]}, "always|are \\['image', 'text'\\]")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            MultimodalClassificationOptions(**told)


def test_rows_without_one_and_files_that_are_not_there(folder, tmp_path):
    processor, task = ImageTextProcessor(byte_tokenizer(), PixelProcessor()), get_task("multimodal-classification", image_size=8, max_length=12)  # fmt: skip
    lines = [
        {"image": str(folder / "images/test0.png"), "text": "", "label": "cake"},
        {"image": None, "text": "a long recipe of soup", "label": "soup"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = load_splits(train=str(tmp_path / "rows.jsonl"), test=str(tmp_path / "rows.jsonl"), validation_fraction=0, texts=task.texts)  # fmt: skip
    splits = task.shaped(splits)
    made = task.prepare(splits, processor)
    assert [sorted(made["test"][n][AVAILABLE]) for n in range(len(made["test"]))] == [["image"], ["text"]]
    assert "2 of 2 rows of test lack a modality." in made.notes
    assert any("1 of 1 examples of train exceed 12 tokens and were cut (task.max_length)" in note for note in made.notes)  # fmt: skip
    assert task.inputs(splits["test"].rows)[1] == {"text": "a long recipe of soup"}
    lines[0]["image"] = "none.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"line 1: no file .*none.png"):
        task.shaped(load_splits(train=str(tmp_path / "rows.jsonl"), validation_fraction=0))


def test_the_papers_recipe_takes_a_step_a_stage_on_a_small_vilt_also_with_several_labels(folder, tmp_path):
    told = load_recipe("missing-modality-food101").model_dump(mode="json", exclude_defaults=True)
    told["model"] |= {"joint": {"from_config": VILT}, "tokenizer": "bytes"}
    told["task"] |= {"image_size": 16, "multi_label": True}
    told["data"] = {"train": f"{folder}/train.jsonl", "test": f"{folder}/test.jsonl", "columns": {"label": "labels"}, "validation_fraction": 0}  # fmt: skip
    told["training"] |= {"max_steps": 1, "batch_size": 3, "bf16": False, "workers": 0, "device": "cpu"}
    told["output"] = str(tmp_path / "run")
    last = run_stages(load_recipe(told), callbacks=[]).last
    assert {"macro_f1", "macro_f1@image", "macro_f1@text", "macro_f1@image+text"} <= set(last.metrics)
    loaded = load_run(tmp_path / "run")
    made = loaded.task.predict(loaded.model, loaded.processor, [{"text": "soup"}])[0]
    assert made[AVAILABLE] == "text" and set(made["scores"]) == set(DISHES)
    assert torch.is_tensor(next(loaded.model.joint.parameters()))
