"""Change detection from recipe to answer: made data, files, predictions with pictures and places, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index
from transformers import SwinModel

from adaptome.cli import main
from adaptome.core.errors import DataError
from adaptome.data.makers.aerial import aerial_places, changed_houses, pairs
from adaptome.data.masks import IGNORED
from adaptome.data.scenes.aerial import COVER
from adaptome.data.splits import to_split
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.tasks.change_detection import ChangeDetectionOptions, PairCollator, Pairs
from adaptome.tasks.pixel_scores import binary_metrics, confusion, mean_iou
from adaptome.tasks.pixels import PixelProcessor, load_pixel_processor
from adaptome.training import evaluate, load_run, run, run_stages
from adaptome.training.folder import MERGED
from tests.data.test_rasters import geotiff
from tests.models.test_change_detector import TINY

MADE = pairs(np.random.default_rng(0), "train", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    for split, rows in (("train", range(4)), ("val", (4,)), ("test", (5,))):
        for column, name in (("before", "A"), ("after", "B"), ("mask", "label")):
            (root / split / name).mkdir(parents=True)
            for row in rows:
                Image.fromarray(MADE.columns[column][row]).save(root / split / name / f"{row}.png")
    return root


def recipe(folder: Path, out: Path, **changes):
    return load_recipe(
        {
            "model": {"composite": "change-detector", "encoder": {"from_config": TINY["vit"]}, "width": 4, "window": 24, "step": 16},
            "task": {"name": "change-detection", "augment": True, "crop": 24},
            "data": {"train": f"{folder}/train", "validation": f"{folder}/val", "test": f"{folder}/test"},
            "method": {"name": "lora", "targets": "encoder.qkv", "r": 2},
            "training": {"max_steps": 3, "batch_size": 2, "device": "cpu", "scheduler": "power", "scheduler_settings": {"power": 3, "floor": 0.1}, "logging_steps": 1, "warmup": 1},
            "output": str(out),
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "change"
    terms = [{"name": name, "logits": ["logits_before", "logits_after"]} for name in ("binary-cross-entropy", "dice")]  # fmt: skip
    result = run(recipe(folder, out, objective=terms), callbacks=[])
    terms = {"loss/binary-cross-entropy", "loss/dice"}
    assert set(result.metrics) == {"loss", "iou", "f1", "precision", "recall", "accuracy"} | terms
    rates = [log["learning_rate"] for log in result.history if "learning_rate" in log]
    assert rates == pytest.approx(
        [5e-5, 5e-4, 5e-4 / 8]
    )  # the floor, the peak, and half of the way down cubed
    return out


def test_figures_are_those_of_the_predictions_over_the_whole_split(trained, folder):
    found = evaluate(trained, overrides=[f"data.test={folder}/train"])
    loaded = load_run(trained)
    files = [(f"{folder}/train/A/{n}.png", f"{folder}/train/B/{n}.png") for n in range(4)]
    masks = [answer["mask"] for answer in loaded.task.predict(loaded.model, loaded.processor, files)]
    predicted, truth = torch.tensor(np.stack(masks)), torch.tensor(MADE.columns["mask"][:4] >= 128)
    assert found["iou"] == pytest.approx(float(binary_jaccard_index(predicted, truth)), abs=1e-6)
    assert found["f1"] == pytest.approx(float(binary_f1_score(predicted, truth)), abs=1e-6)
    assert found["accuracy"] == pytest.approx(float((predicted == truth).float().mean()))


def test_counts_leave_out_what_is_not_known_and_f1_follows_from_iou():
    torch.manual_seed(0)
    predicted, truth = torch.randint(0, 3, (2, 9, 11)), torch.randint(0, 3, (2, 9, 11))
    truth[:, 0] = IGNORED
    counts = confusion(predicted, truth, 3)
    assert counts.shape == (2, 3, 3) and int(counts.sum()) == 2 * 8 * 11
    assert int(counts[1, 2, 0]) == int(((truth[1] == 2) & (predicted[1] == 0)).sum())
    found = binary_metrics(np.array([[50, 7], [11, 32]]))
    assert found["f1"] == pytest.approx(2 * found["iou"] / (1 + found["iou"]))
    assert found["iou"] == pytest.approx(32 / 50) and found["accuracy"] == pytest.approx(0.82)
    assert binary_metrics(np.array([[9, 0], [0, 0]]))["iou"] == 1 and binary_metrics(np.array([[9, 0], [4, 0]]))["precision"] == 0  # fmt: skip
    means = mean_iou(np.array([[4, 1, 0], [1, 2, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert means == pytest.approx({"miou": (4 / 6 + 2 / 4) / 2, "iou_a": 4 / 6, "iou_b": 0.5})


def test_the_three_pictures_of_a_row_are_changed_alike_and_anew():
    split = to_split([MADE], "train")
    own = ChangeDetectionOptions(augment=True, crop=28)
    rows = Pairs(split, own, True)
    first = [rows[n]["mask"].tobytes() for n in range(6)]
    assert first == [rows[n]["mask"].tobytes() for n in range(6)]
    rows.set_epoch(1)
    assert first != [rows[n]["mask"].tobytes() for n in range(6)]
    plain = Pairs(split, own, False)[2]
    assert np.array_equal(plain["before"], MADE.columns["before"][2]) and plain["mask"].shape == (32, 32)
    same = Pairs(to_split([_alike(2)], "train"), own, True)
    for epoch in range(4):
        same.set_epoch(epoch)
        row = same[0]
        assert np.array_equal(row["before"], row["after"]) and row["mask"].shape == row["before"].shape[:2]
        known = row["mask"] != IGNORED  # what is white in the picture is what the mask marks
        assert ((row["before"][..., 0] > 128) == (row["mask"] == 1))[known].mean() > 0.97


def _alike(row: int):
    mask = MADE.columns["mask"][row : row + 1]
    picture = np.repeat(mask[..., None], 3, -1)
    return type(MADE)("x", {"before": picture, "after": picture, "mask": mask}, [1])


def test_pictures_of_several_sizes_are_padded_with_what_is_not_known():
    rows = [{"before": np.full((h, w, 3), 9, np.uint8), "after": np.zeros((h, w, 3), np.uint8), "mask": np.ones((h, w), np.uint8)} for h, w in ((4, 6), (5, 3))]  # fmt: skip
    batch = PairCollator(PixelProcessor())(rows)
    assert batch["pixel_values"].shape == (2, 3, 5, 6) and batch["labels"].dtype == torch.uint8
    assert batch["labels"][0, 4].unique().tolist() == [IGNORED] and int((batch["labels"][1] == 1).sum()) == 15
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PixelProcessor().mean, PixelProcessor().std))
    torch.testing.assert_close(batch["pixel_values"][0], ((9 / 255 - mean) / std).expand(3, 5, 6))


def test_an_encoders_own_mean_and_spread_are_used(tmp_path):
    PixelProcessor((0.1, 0.2, 0.3), (1, 2, 3)).save_pretrained(tmp_path)
    source = type("Source", (), {"tokenizer": None, "name": str(tmp_path), "revision": None})
    assert load_pixel_processor(source).mean == (0.1, 0.2, 0.3)
    source.name = None
    assert load_pixel_processor(source).mean == PixelProcessor().mean


def test_a_command_on_two_files_writes_the_overlay_and_the_mask(trained, folder, tmp_path, capsys):
    before, after = (str(folder / "test" / name / "5.png") for name in ("A", "B"))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(trained), before, after, "--output", str(tmp_path)])
    assert not stopped.value.code and "% changed" in capsys.readouterr().out
    line = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert line["prediction"].keys() == {"changed", "place"} and line["pictures"]["mask"] == "5-mask.png"
    mask = np.asarray(Image.open(tmp_path / "5-mask.png"))
    assert mask.shape == (32, 32) and line["prediction"]["changed"] == pytest.approx(
        (mask == 255).mean(), abs=1e-6
    )
    overlay, given = (np.asarray(Image.open(path)) for path in (tmp_path / "5-change.png", after))
    assert np.array_equal((overlay != given).any(-1), mask == 255)


def test_a_place_is_kept_in_the_mask(trained, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for name, column in (("a.tif", "before"), ("b.tif", "after")):
        geotiff(tmp_path / name, MADE.columns[column][0])
    with pytest.raises(SystemExit):
        main(
            [
                "predict",
                str(trained),
                str(tmp_path / "a.tif"),
                str(tmp_path / "b.tif"),
                "-o",
                str(tmp_path / "out"),
            ]
        )
    with rasterio.open(tmp_path / "out" / "b-mask.tif") as file:
        assert file.crs.to_epsg() == 32650 and file.shape == (32, 32)
        assert tuple(file.transform)[:6] == (2.0, 0.0, 500.0, 0.0, -2.0, 900.0)
        assert np.array_equal(file.read(1), np.asarray(Image.open(tmp_path / "out" / "b-mask.png")))


def test_pairs_are_given_by_twos_by_folders_and_by_a_folder_of_pairs(trained, folder, tmp_path):
    task = get_task("change-detection")
    one, two = (str(folder / "train" / name) for name in ("A", "B"))
    expected = [(f"{one}/{n}.png", f"{two}/{n}.png") for n in range(4)]
    assert [g.value for g in task.given([str(folder / "train")])] == expected
    assert [g.value for g in task.given([one, two])] == expected
    assert [g.value for g in task.given([*expected[1], *expected[0]])] == [expected[1], expected[0]]
    with pytest.raises(DataError, match=r"0.png has no counterpart: give pictures by twos"):
        task.given([expected[0][0]])
    with pytest.raises(DataError, match=r"no such file or folder: none.png"):
        task.given(["none.png", expected[0][1]])
    with pytest.raises(DataError, match=r"0.png has no counterpart in .*val/B"):
        task.given([one, str(folder / "val" / "B")])


def test_pictures_that_do_not_go_together_are_told_before_training(folder, tmp_path):
    task = get_task("change-detection")
    for name, size in (("A", 48), ("B", 48), ("label", 40)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / name / "x.png")
    with pytest.raises(DataError, match=r"B/x.png is 48 x 48 pixels and .*label/x.png is 40 x 40"):
        run(
            recipe(folder, tmp_path / "run", data={"train": str(tmp_path), "validation_fraction": 0}),
            callbacks=[],
        )
    with pytest.raises(DataError, match=r"x.png is 48 x 48 pixels and .*x.png is 40 x 40"):
        task.predict(
            torch.nn.Linear(1, 1), PixelProcessor(), [tuple(f"{tmp_path}/{n}/x.png" for n in ("A", "label"))]
        )
    torn = tmp_path / "A" / "x.png"
    torn.write_bytes(torn.read_bytes()[:60])
    rows = Pairs(to_split([type(MADE)("x", {"before": [str(torn)], "after": [str(torn)], "mask": [str(torn)]}, [1])], "train"), ChangeDetectionOptions(), True)  # fmt: skip
    with pytest.raises(DataError, match=r"A/x.png is not an image that can be read"):
        rows[0]


def test_the_same_seed_makes_the_same_pairs_and_masks_are_of_houses():
    one, other, third = (changed_houses(seed, 3, 1, 1)["train"].columns for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["after"], third["after"]) and set(np.unique(one["mask"])) <= {0, 255}
    changed = pairs(np.random.default_rng(1), "x", 24).columns["mask"] >= 128
    assert (
        0 < changed.mean() < 0.2 and not changed.any((1, 2)).all()
    )  # some pairs are alike but for season and light
    covers = aerial_places(0, 16, 8)["train"].columns["cover"]
    assert covers.max() == COVER.index("house") and covers.min() == 0


@pytest.mark.parametrize("name", ["peftcd-dinov3", "peftcd-sam2"])
def test_the_papers_recipes_take_two_steps_on_small_encoders(name, folder, tmp_path):
    told = load_recipe(name).model_dump(mode="json", exclude_defaults=True)
    encoder = TINY["dinov3" if "dino" in name else "sam2"]
    told["model"] |= {"encoder": {"from_config": encoder}, "width": 4, "window": 32, "step": 32}
    told["training"] |= {
        "max_steps": 2,
        "batch_size": 2,
        "eval_steps": 2,
        "save_steps": 2,
        "bf16": False,
        "workers": 0,
        "device": "cpu",
    }
    told["data"] = {"train": f"{folder}/train", "validation": f"{folder}/val", "test": f"{folder}/test"}
    result = run(load_recipe({**told, "output": str(tmp_path)}), callbacks=[])
    assert result.steps == 2 and "iou" in result.metrics


def test_the_demonstration_takes_two_steps_a_stage(tmp_path, monkeypatch):
    small = {"aerial-places": aerial_places(0, 16, 8), "changed-houses": changed_houses(0, 4, 2, 2)}
    monkeypatch.setattr("adaptome.data.load.make", lambda name, seed: small[name.removeprefix("made:")])
    steps = ["training.max_steps=2", "stages.1.training.max_steps=2", "training.device=cpu"]
    told = load_recipe("peftcd-demo", [*steps, f"output={tmp_path}/demo"])
    assert [name for name, _ in stages_of(told)] == ["1-encoder", "2-detector"]
    last = run_stages(told, callbacks=[]).last
    assert last.split == "test" and "iou" in last.metrics
    loaded = load_run(tmp_path / "demo" / "2-detector")
    # the encoder of the first stage, in a model of another kind
    first = SwinModel.from_pretrained(tmp_path / "demo" / "1-encoder" / MERGED).state_dict()
    own = {n: p for n, p in loaded.model.encoder.state_dict().items() if "adaptome" not in n}
    assert own.keys() == first.keys() and all(torch.equal(p, first[n]) for n, p in own.items())
    assert loaded.processor.mean == PixelProcessor().mean and loaded.model.taps == [0, 1, 2]
