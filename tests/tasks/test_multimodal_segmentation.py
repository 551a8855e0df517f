"""Segmentation by several modalities from recipe to answer: layouts, sets, a bank each, predictions with any of them, the demonstration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_jaccard_index

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError, StateError
from adaptome.data.load import load_splits
from adaptome.data.makers.rooms import sensed_rooms, sensors
from adaptome.data.splits import to_split
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.tasks.modality_pictures import (
    MultimodalSegmentationOptions,
    PictureCollator,
    Pictures,
    picture,
    read_classes,
)
from adaptome.tasks.modality_sets import AVAILABLE
from adaptome.tasks.pixels import PixelProcessor
from adaptome.training import load_run, run, run_stages
from adaptome.training.building import base_model, prepared
from tests.models.test_modality_segmenter import TINY

MADE = sensors(np.random.default_rng(0), "train", 6).columns
CLASSES = ["floor", "wall", "ball", "box", "tube"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """NYUDv2's layout, masks counted from 1, with one depth missing."""
    root = tmp_path_factory.mktemp("data")
    for name in ("RGB", "HHA", "Label"):
        (root / name).mkdir()
    for number in range(6):
        Image.fromarray(MADE["rgb"][number]).save(root / "RGB" / f"{number}.png")
        Image.fromarray(MADE["mask"][number] + np.uint8(1)).save(root / "Label" / f"{number}.png")
        if number != 3:
            Image.fromarray(MADE["depth"][number]).save(root / "HHA" / f"{number}.png")
    (root / "train.txt").write_text("".join(f"RGB/{n}.png Label/{n}.png\n" for n in range(4)))
    (root / "val.txt").write_text("4\n5\n")
    return root


def recipe(folder: Path, out: Path, **changes):
    return load_recipe(
        {
            "model": {"composite": "modality-segmenter", "encoders": {"rgb": {"from_config": TINY}, "depth": {"from_config": TINY}}, "width": 4},
            "task": {"name": "multimodal-segmentation", "classes": CLASSES, "first": 1, "ignored": 0, "crop": 24, "augment": True, "train_on": "missing"},
            "data": {"train": f"{folder}/train.txt", "validation": f"{folder}/val.txt"},
            "method": {"name": "missing-modality", "targets": ["all-linear", "norms", "convs"], "exclude": "decoder", "branches": {"rgb": "encoders.rgb.*", "depth": "encoders.depth.*"}},
            "training": {"max_steps": 6, "batch_size": 2, "device": "cpu", "learning_rate": 0.05, "keep_best": False},
            "output": str(out),
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "rooms"
    result = run(recipe(folder, out), callbacks=[])
    parts = {f"{kind}@{s}" for kind in ("miou", "accuracy") for s in ("depth", "rgb", "depth+rgb")}
    assert set(result.metrics) == {"loss", "miou", "accuracy"} | parts
    means = [result.metrics[f"miou@{s}"] for s in ("depth", "rgb", "depth+rgb")]
    assert result.metrics["miou"] == pytest.approx(sum(means) / 3)
    assert "1 of 4 rows of train lack a modality." in result.notes
    return out


def inputs(row: int, *names: str) -> dict[str, np.ndarray]:
    return {name: MADE[name][row] for name in names}


def test_a_sets_figure_is_that_of_its_predictions_over_the_whole_split(trained):
    found = json.loads((trained / "metrics.json").read_text())["metrics"]
    loaded = load_run(trained)
    for names in (("rgb",), ("depth",), ("rgb", "depth")):
        made = loaded.task.predict(loaded.model, loaded.processor, [inputs(n, *names) for n in (4, 5)])
        key = "+".join(sorted(names))
        assert [one[AVAILABLE] for one in made] == [key, key]
        masks, truth = torch.tensor(np.stack([one["mask"] for one in made])), torch.tensor(MADE["mask"][4:6])
        each = multiclass_jaccard_index(masks, truth, 5, average="none")
        there = [c for c in range(5) if ((masks == c) | (truth == c)).any()]
        assert found[f"miou@{key}"] == pytest.approx(float(each[there].mean()), abs=1e-6)


def test_banks_moved_and_the_full_set_is_the_network_as_it_was(trained, folder):
    loaded = load_run(trained)
    told = recipe(folder, trained / "x")
    task, processor, _, _ = prepared(told)
    base, _, _ = base_model(told, task, processor)
    base.eval()
    pixels = {n: torch.randn(1, 3, 32, 32) for n in ("rgb", "depth")}
    assert torch.equal(base(pixels)["logits"], loaded.model(pixels)["logits"])
    for key in ("rgb", "depth"):
        only = {key: pixels[key]}
        with torch.no_grad(), ad.steer(available=key):
            assert not torch.equal(base(only)["logits"], loaded.model(only)["logits"])


def test_a_command_with_one_of_the_modalities_writes_the_segments(trained, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(trained), f"depth={folder}/HHA/5.png", "--output", str(tmp_path)])
    assert not stopped.value.code and "depth=" in capsys.readouterr().out
    line = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert line["prediction"][AVAILABLE] == "depth" and set(line["pictures"]) == {"segments", "mask"}
    mask = np.asarray(Image.open(tmp_path / line["pictures"]["mask"]))
    assert mask.shape == (32, 32) and mask.max() < 5


def test_what_a_run_cannot_do_without_is_asked_for(trained, folder, tmp_path):
    loaded = load_run(trained, ["task.required=[rgb]"])
    with pytest.raises(DataError, match=r"input 2: this run cannot do without rgb; given: depth"):
        loaded.task.predict(loaded.model, loaded.processor, [inputs(0, "rgb", "depth"), inputs(0, "depth")])
    with pytest.raises(DataError, match=r"input 1: 'thermal' is no modality of this run"):
        loaded.task.predict(loaded.model, loaded.processor, [inputs(0, "rgb", "thermal")])
    with pytest.raises(DataError, match=r"is 32 x 32 pixels and .* is 16 x 16"):
        loaded.task.predict(loaded.model, loaded.processor, [{"rgb": MADE["rgb"][0], "depth": MADE["depth"][0][:16, :16]}])  # fmt: skip
    one = {**recipe(folder, tmp_path).methods[0].settings, "sets": ["rgb"]}
    method = {"name": "missing-modality", "targets": ["all-linear", "norms"], "exclude": "decoder", **one}
    out = tmp_path / "one"
    task = {"name": "multimodal-segmentation", "classes": CLASSES, "first": 1, "ignored": 0, "train_on": ["rgb"], "test_on": ["rgb"]}  # fmt: skip
    told = recipe(
        folder, out, method=method, task=task, training={"max_steps": 1, "batch_size": 2, "device": "cpu"}
    )
    assert set(run(told, callbacks=[]).metrics) == {"loss", "miou", "accuracy", "miou@rgb", "accuracy@rgb"}
    only = load_run(out)
    with pytest.raises(StateError, match=r"no bank is for 'depth'; there are \['rgb'\]"):
        only.task.predict(only.model, only.processor, [inputs(0, "depth")])
    with pytest.raises(
        RecipeError, match=r"task.modalities is \['depth', 'rgb'\], and model.encoders are of"
    ):
        run(recipe(folder, tmp_path / "x", task={**task, "modalities": ["depth", "rgb"]}), callbacks=[])


def test_another_method_takes_its_place(folder, tmp_path):
    lora = {"name": "lora", "targets": "encoders.qkv", "r": 2}
    training = {"max_steps": 1, "batch_size": 2, "device": "cpu"}
    assert "miou@depth" in run(recipe(folder, tmp_path, method=lora, training=training), callbacks=[]).metrics


def test_nothing_is_zero_behind_normalisation_and_not_before():
    own = MultimodalSegmentationOptions(classes=5)
    row = {"rgb": MADE["rgb"][0], "depth": MADE["rgb"][1], "mask": MADE["mask"][0], "present": frozenset({"rgb", "depth"})}  # fmt: skip
    batch = PictureCollator(PixelProcessor(), own)([{**row, AVAILABLE: frozenset({"rgb"})}])
    assert batch["pixels"]["depth"].eq(0).all() and batch["pixels"]["rgb"].abs().mean() > 0.1
    black = PixelProcessor()([np.zeros((4, 4, 3), np.uint8)])
    assert black.abs().min() > 1  # black is far from nothing
    own = MultimodalSegmentationOptions(classes=5, fill={"depth": 1.0})
    batch = PictureCollator(PixelProcessor(), own)([{**row, AVAILABLE: frozenset({"rgb"})}])
    assert batch["pixels"]["depth"].eq(1).all() and batch["labels"].dtype == torch.uint8


def test_pictures_and_mask_are_cut_and_changed_alike():
    columns = {
        "rgb": MADE["mask"][..., None].repeat(3, -1) * 50,
        "depth": MADE["mask"] * 50,
        "mask": MADE["mask"],
    }
    split = to_split([type(sensors(np.random.default_rng(0), "x", 1))("x", columns, range(6))], "train")
    own = MultimodalSegmentationOptions(classes=5, crop=20, augment=True)
    for seed in range(4):
        made = Pictures(split, own)(2, np.random.default_rng(seed))
        known = made["mask"] != 255
        assert made["rgb"].shape == (20, 20, 3) and np.array_equal(made["rgb"], made["depth"])
        assert (np.abs(made["rgb"][..., 0] / 50 - made["mask"])[known] < 0.5).mean() > 0.8


def test_mfnets_pictures_of_four_bands_are_colour_and_heat(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    four = np.concatenate([MADE["rgb"][0], MADE["thermal"][0][..., None]], -1)
    Image.fromarray(four, "RGBA").save(tmp_path / "images" / "00001D.png")
    Image.fromarray(MADE["mask"][0]).save(tmp_path / "labels" / "00001D.png")
    (tmp_path / "train.txt").write_text("00001D\n")
    rows = load_splits(train=f"{tmp_path}/train.txt", validation_fraction=0, prefer={"text": "modalities"})["train"].rows  # fmt: skip
    assert set(rows.column_names) == {"rgb", "thermal", "mask"}
    own = MultimodalSegmentationOptions(modalities=["rgb", "thermal"], classes=5, bands={"rgb": [1, 2, 3], "thermal": [4]})  # fmt: skip
    assert np.array_equal(picture(rows[0]["rgb"], "rgb", own).pixels, MADE["rgb"][0])
    heat = picture(rows[0]["thermal"], "thermal", own).pixels
    assert np.array_equal(heat, MADE["thermal"][0][..., None].repeat(3, -1))
    Image.fromarray(MADE["thermal"][0]).save(tmp_path / "heat.png")
    assert np.array_equal(picture(str(tmp_path / "heat.png"), "thermal", own).pixels, heat)


def test_lists_and_masks_that_do_not_fit_are_told(folder, tmp_path):
    lists = folder / "x.txt"
    for content, message in (("9\n", "line 1: no mask '9' in .*Label"),):
        lists.write_text(content)
        with pytest.raises(DataError, match=message):
            load_splits(train=str(lists), prefer={"text": "modalities"})
    Image.fromarray(MADE["mask"][0]).save(folder / "Label" / "8.png")
    lists.write_text("8\n")
    with pytest.raises(DataError, match="line 1: no picture '8' of any modality"):
        load_splits(train=str(lists), prefer={"text": "modalities"})
    own = MultimodalSegmentationOptions(classes=4, first=1, ignored=0)
    made, _ = read_classes(np.array([[0, 1], [4, 2]], np.uint8), own)
    assert made.tolist() == [[255, 0], [3, 1]]
    with pytest.raises(DataError, match="holds the class number 4; there are 4"):
        read_classes(np.array([[5]], np.uint8), own)
    np.save(tmp_path / "d.npy", np.linspace(0, 9, 16, dtype=np.float32).reshape(4, 4))
    with pytest.raises(
        DataError, match=r"d.npy holds float32 from 0 to 9.*\n.*task.ranges='\{depth: \[0, 9\]\}'"
    ):
        picture(str(tmp_path / "d.npy"), "depth", own)
    metres = MultimodalSegmentationOptions(classes=4, ranges={"depth": (0, 9)})
    assert picture(str(tmp_path / "d.npy"), "depth", metres).pixels[..., 0].flatten()[[0, -1]].tolist() == [0, 255]  # fmt: skip
    with pytest.raises(DataError, match="no column 'thermal'.*\n.*task.modalities"):
        get_task("multimodal-segmentation", classes=5, modalities=["rgb", "thermal"]).prepare(
            load_splits(train=f"{folder}/train.txt", prefer={"text": "modalities"}), PixelProcessor()
        )


def test_the_same_seed_senses_the_same_rooms():
    one, other, third = (sensed_rooms(seed, 3, 1, 1)["train"].columns for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["thermal"], third["thermal"]) and MADE["mask"].max() == 4


def test_the_demonstration_takes_two_steps_a_stage(tmp_path, monkeypatch):
    small = sensed_rooms(0, 8, 2, 2)
    monkeypatch.setattr("adaptome.data.load.make", lambda name, seed: small)
    steps = ["training.max_steps=2", "stages.1.training.max_steps=2", "training.device=cpu"]
    told = load_recipe("missing-modality-demo", [*steps, f"output={tmp_path}/demo"])
    assert [name for name, _ in stages_of(told)] == ["1-network", "2-banks"]
    last = run_stages(told, callbacks=[]).last
    assert last.split == "test" and sum("miou@" in name for name in last.metrics) == 7
    loaded = load_run(tmp_path / "demo" / "2-banks")
    first = load_run(tmp_path / "demo" / "1-network")
    pixels = {n: torch.randn(1, 3, 32, 32) for n in ("rgb", "depth", "thermal")}
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(pixels)["logits"], first.model(pixels)["logits"])
