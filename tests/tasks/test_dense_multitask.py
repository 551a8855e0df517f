"""Dense multi-task learning from recipe to answer: made rooms, the layouts of PASCAL-MT and NYUD-MT, figures and panels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.data.load import load_splits
from adaptome.data.makers.rooms import MAPS, room_shapes, rooms, views
from adaptome.data.splits import to_split
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.dense_maps import read_map
from adaptome.tasks.dense_multitask import DenseMultitaskOptions, Views, width
from adaptome.tasks.dense_scores import THRESHOLDS, counted, delta_m, figures
from adaptome.training import evaluate, load_run, run, run_stages
from tests.models.test_dense_multitask import TINY

MADE = views(np.random.default_rng(0), "train", 6)
SMALL = {"room-shapes": room_shapes(0, 8, 4), "rooms": rooms(0, 6, 3, 3)}
CLASSES = {"semseg": ["floor", "wall", "ball", "box", "tube"], "human_parts": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """PASCAL-MT's layout with NYUD-MT's arrays beside it."""
    root = tmp_path_factory.mktemp("data") / "PASCAL_MT"
    places = {"image": "JPEGImages", "semseg": "semseg/VOC12", "human_parts": "human_parts", "sal": "sal_distill", "normals": "normals_distill"}  # fmt: skip
    for number in range(6):
        for column, place in places.items():
            value = MADE.columns[column][number]
            if column == "normals":
                value = np.round((value + 1) * 127.5).astype(np.uint8)
            if column == "sal":
                value = value * np.uint8(255)
            (root / place).mkdir(parents=True, exist_ok=True)
            if (column, number) != ("human_parts", 1):
                Image.fromarray(value).save(root / place / f"{number}.png")
        for column in ("depth", "edge"):
            (root / column).mkdir(exist_ok=True)
            np.save(root / column / f"{number}.npy", MADE.columns[column][number])
    (root / "gt_sets" / "pascal-context").mkdir(parents=True)
    (root / "gt_sets" / "pascal-context" / "train.txt").write_text("0\n1\n2\n3\n")
    (root / "gt_sets" / "pascal-context" / "val.txt").write_text("4\n5\n")
    return root


def recipe(folder: Path, out: Path, **changes):
    lists = folder / "gt_sets" / "pascal-context"
    return load_recipe(
        {
            "model": {"composite": "dense-multitask", "encoder": {"from_config": TINY}, "width": 4, "passes": "streams"},
            "task": {"name": "dense-multitask", "tasks": ["semseg", "human_parts", "sal", "normals"], "classes": CLASSES, "image_size": 16, "augment": True},
            "data": {"train": f"{lists}/train.txt", "validation": f"{lists}/val.txt"},
            "method": {"name": "mtlora", "targets": "encoder.all-linear", "exclude": "*.reduction", "r": 2, "task_r": 2, "specific": ["*.layers.1.blocks.1.*"]},
            "training": {"max_steps": 2, "batch_size": 2, "device": "cpu"},
            "output": str(out),
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "tasks"
    result = run(recipe(folder, out), callbacks=[])
    assert set(result.metrics) == {
        "loss",
        "miou_semseg",
        "miou_human_parts",
        "iou_sal",
        "angle_normals",
        "angle_rms_normals",
    }
    return out


def test_the_layout_is_read_and_what_is_missing_is_not_known(folder):
    splits = load_splits(
        train=f"{folder}/gt_sets/pascal-context/train.txt", validation_fraction=0, prefer={"text": "dense"}
    )
    rows = splits["train"].rows
    assert set(rows.column_names) == {"image", *MAPS} and rows["human_parts"][1] is None
    own = DenseMultitaskOptions(tasks=list(MAPS), classes=CLASSES, image_size=32)
    found = [Views(splits["train"], own, True)[n] for n in range(4)]
    for number, row in enumerate(found):
        for column in ("image", "semseg", "sal", "edge", "depth"):
            made = MADE.columns["image" if column == "image" else column][number]
            assert np.array_equal(row[column], made), column
        assert np.abs(row["normals"] - MADE.columns["normals"][number]).max() < 0.01
    assert (found[1]["human_parts"] == 255).all() and (found[0]["human_parts"] != 255).all()


def test_lists_that_name_nothing_are_told(folder, tmp_path):
    lists = folder / "gt_sets" / "x.txt"
    lists.write_text("0\nnone\n")
    with pytest.raises(DataError, match=r"line 2: no picture 'none' in .*JPEGImages"):
        load_splits(train=str(lists), prefer={"text": "dense"})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("0\n")
    with pytest.raises(DataError, match="no folder JPEGImages"):
        load_splits(train=str(tmp_path / "a" / "x.txt"), prefer={"text": "dense"})


def test_maps_of_another_size_or_content_are_told_by_name(tmp_path):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m.png is 8 x 8 pixels, and its picture 16 x 8"):
        read_map("classes", str(tmp_path / "m.png"), (8, 16), (8, 8), 21)
    with pytest.raises(DataError, match=r"m.png holds the class number 9; there are 7"):
        read_map("classes", str(tmp_path / "m.png"), (8, 8), (8, 8), 7)
    (tmp_path / "d.npy").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"d.npy is not an array"):
        read_map("depth", str(tmp_path / "d.npy"), (8, 8), (8, 8), 1)
    with pytest.raises(DataError, match="normals are"):
        read_map("normals", np.zeros((8, 8), np.float32), (8, 8), (8, 8), 3)


def test_augmented_pictures_and_maps_stay_together():
    split = to_split([MADE], "train")
    own = DenseMultitaskOptions(tasks=["semseg", "normals"], classes=CLASSES, image_size=32, augment=True)
    rows, plain = Views(split, own, True), Views(split, own, False)
    seen = set()
    for epoch in range(4):
        rows.set_epoch(epoch)
        row = rows[0]
        known = row["semseg"] != 255
        seen.add(row["semseg"].tobytes())
        lengths = np.linalg.norm(row["normals"], axis=-1)
        assert np.allclose(lengths[known], 1, atol=1e-5) and np.allclose(lengths[~known], 0)
        # the wall's normals point to the viewer however the picture is turned
        assert np.allclose(row["normals"][row["semseg"] == 1], [0, 0, 1], atol=1e-5)
    assert len(seen) > 1 and np.array_equal(plain[0]["image"], MADE.columns["image"][0])


# -- figures -------------------------------------------------------------------------------------------------------------

PAPER = {"semseg": 67.21, "human_parts": 61.93, "sal": 62.35, "normals": 17.97}
LESS = {"semseg": False, "human_parts": False, "sal": False, "normals": True}


@pytest.mark.parametrize(
    "row,gain",
    [((70.87, 59.54, 65.47, 17.47), 2.34), ((71.43, 60.73, 65.54, 17.77), 2.64), ((70.12, 57.73, 61.90, 18.96), -2.17), (tuple(PAPER.values()), 0)],
)  # fmt: skip
def test_the_overall_gain_is_that_of_the_papers_rows(row, gain):
    assert delta_m(dict(zip(PAPER, row, strict=True)), PAPER, LESS) == pytest.approx(gain, abs=0.006)


def test_figures_of_every_kind_against_a_plain_computation():
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (3, 5, 6), generator=g).byte()
    truth[0, 0] = 255
    maps = torch.randn(3, 1, 5, 6, generator=g)
    known, best = truth != 255, []
    for threshold in THRESHOLDS:
        said = maps[:, 0].sigmoid() > threshold
        ious = [
            float((s & (t == 1))[k].sum() / (s | (t == 1))[k].sum())
            for s, t, k in zip(said, truth, known, strict=True)
        ]
        best.append(np.mean(ious))
    assert figures("saliency", counted("saliency", maps, truth).numpy())["iou"] == pytest.approx(max(best))
    assert len(THRESHOLDS) == 15 and (THRESHOLDS[0], THRESHOLDS[-1]) == pytest.approx((0.2, 0.9))
    directions = torch.nn.functional.normalize(torch.randn(3, 5, 6, 3, generator=g), dim=-1)
    directions[1, 2] = 0
    found = torch.randn(3, 3, 5, 6, generator=g).double()
    unit = torch.nn.functional.normalize(found.movedim(1, -1), dim=-1)
    there = directions.abs().sum(-1) > 0
    angles = torch.rad2deg(torch.acos((unit * directions).sum(-1)))[there]
    told = figures("normals", counted("normals", found, directions).numpy())
    assert told["angle"] == pytest.approx(float(angles.mean()), rel=1e-5)
    assert told["angle_rms"] == pytest.approx(float((angles**2).mean() ** 0.5), rel=1e-5)
    depth = torch.rand(3, 5, 6, generator=g) + 0.5
    depth[2, 0] = 0
    error = (maps[:, 0] - depth)[depth > 0].double()
    told = figures("depth", counted("depth", maps, depth).numpy())
    assert told["rmse"] == pytest.approx(float((error**2).mean() ** 0.5), rel=1e-5)
    assert told["absrel"] == pytest.approx(float((error.abs() / depth[depth > 0]).mean()), rel=1e-5)
    assert [
        width(kind, n) for kind, n in (("classes", 4), ("saliency", 1), ("normals", 3), ("depth", 1))
    ] == [16, 45, 3, 3]


def test_the_gain_is_told_where_single_figures_are_given(trained):
    plain = evaluate(trained)
    single = {"sal": 0.5, "normals": 40.0}
    found = evaluate(trained, overrides=[f"task.single={json.dumps(single)}"])
    expected = 50 * ((plain["iou_sal"] - 0.5) / 0.5 - (plain["angle_normals"] - 40) / 40)
    assert found["delta_m"] == pytest.approx(expected)


def test_options_that_say_too_little_are_refused():
    with pytest.raises(RecipeError, match="say of which kind 'shade' is"):
        get_task("dense-multitask", tasks=["shade"])
    with pytest.raises(RecipeError, match="say how many 'x' has"):
        get_task("dense-multitask", tasks=["x"], kinds={"x": "classes"})
    with pytest.raises(RecipeError, match="single names 'depth', which is none of tasks"):
        get_task("dense-multitask", single={"depth": 1})


# -- use -----------------------------------------------------------------------------------------------------------------


def test_a_command_draws_all_tasks_beside_the_picture(trained, folder, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.repeat(np.repeat(MADE.columns["image"][0], 2, 0), 3, 1)).save(photo)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(trained), str(photo), "-o", str(tmp_path / "out")])
    assert not stopped.value.code and capsys.readouterr().out.endswith(f"{photo}\n")
    panel = Image.open(tmp_path / "out" / "photo-panel.png")
    assert panel.size == (96 * 5 + 4 * 4, 64)
    assert {f.name for f in (tmp_path / "out").glob("photo-*.png")} == {f"photo-{n}.png" for n in ("panel", "semseg", "human_parts", "sal", "normals")}  # fmt: skip
    loaded = load_run(trained)
    (found,) = loaded.task.predict(loaded.model, loaded.processor, [str(photo)])
    assert found["maps"]["semseg"].shape == (64, 96) and found["maps"]["semseg"].max() < 5
    assert np.allclose(np.linalg.norm(found["maps"]["normals"], axis=-1), 1, atol=1e-4)
    assert 0 <= found["maps"]["sal"].min() and found["maps"]["sal"].max() <= 1


@pytest.mark.parametrize("name", ["mtlora-pascal", "mtlora-nyud", "polyhistor-pascal"])
def test_the_papers_recipes_take_two_steps_on_a_small_encoder(name, folder, tmp_path):
    told = load_recipe(name).model_dump(mode="json", exclude_defaults=True)
    told["model"] |= {"encoder": {"from_config": TINY}, "width": 4}
    told["training"] |= {"max_steps": 2, "batch_size": 2, "bf16": False, "workers": 0, "device": "cpu"}
    told["task"] |= {"image_size": 16}
    lists = folder / "gt_sets" / "pascal-context"
    told["data"] = {"train": f"{lists}/train.txt", "validation": f"{lists}/val.txt"}
    if "specific" in told["methods"][0]:
        told["methods"][0]["specific"] = ["*.layers.0.blocks.0.*", "*.layers.1.blocks.1.*"]
    result = run(load_recipe({**told, "output": str(tmp_path)}), callbacks=[])
    assert result.steps == 2 and "miou_semseg" in result.metrics and "angle_normals" in result.metrics


@pytest.mark.parametrize("name", ["mtlora-demo", "polyhistor-demo"])
def test_the_demonstrations_take_two_steps_a_stage(name, tmp_path, monkeypatch):
    monkeypatch.setattr("adaptome.data.load.make", lambda name, seed: SMALL[name.removeprefix("made:")])
    steps = ["training.max_steps=2", "stages.1.training.max_steps=2", "training.device=cpu"]
    last = run_stages(load_recipe(name, [*steps, f"output={tmp_path}/demo"]), callbacks=[]).last
    assert last.split == "test" and {"miou_semseg", "iou_sal", "angle_normals"} <= set(last.metrics)
