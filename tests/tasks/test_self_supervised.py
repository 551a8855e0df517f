"""Learning from pictures alone: batches, both objectives in a run, an interrupted run, what is scored and what is predicted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback

from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.data import load_splits
from adaptome.data.makers import makers
from adaptome.data.makers.grounds import COUNTS
from adaptome.data.scenes.grounds import PATTERNS, at_night
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.bands import BandOptions, BandProcessor, read_bands
from adaptome.tasks.probes import linear_accuracy, nearest_accuracy, probed
from adaptome.tasks.self_supervised import stacked
from adaptome.training import load_run, run

ENCODER = {
    "from_config": {
        "model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    }
}  # fmt: skip
DINO = {
    "name": "dinov2",
    "prototypes": 8,
    "hidden": 8,
    "bottleneck": 4,
    "centring": "softmax",
    "momentum": 0.5,
}
ALONE = {
    "views": 1,
    "local_views": 0,
    "hidden": [0.75, 0.75],
    "hidden_chance": 1,
    "hidden_blocks": False,
    "colour": 0,
}
LORA = {
    "name": "lora",
    "targets": ["encoder.q", "encoder.v"],
    "r": 2,
    "train": ["encoder.layers.1", "encoder.norms"],
}
DECODER = {"layers": 1, "width": 8, "heads": 2, "mlp": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures to train on, ten to test on with labels."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    drawn = np.stack([at_night(rng, kind) for kind in [*PATTERNS] * 3])
    columns = {"train": drawn[:12], "test": drawn[12:22]}
    labels = {name: np.arange(len(images)) % 2 for name, images in columns.items()}
    arrays = {f"{k}_image": v for k, v in columns.items()} | {f"{k}_label": v for k, v in labels.items()}
    np.savez(place / "grounds.npz", **arrays)
    for number, picture in enumerate(columns["test"][:3]):
        Image.fromarray(picture).save(place / f"{number}.png")
    return place


def recipe(folder, out, **changes):
    content = {
        "model": {"composite": "view-encoder", "encoder": ENCODER},
        "task": {"name": "self-supervised", "local_views": 1},
        "data": {"name": str(folder / "grounds.npz"), "validation_fraction": 0},
        "method": LORA,
        "objective": [DINO],
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "device": "cpu",
            "keep_best": False,
            "learning_rate": 0.01,
        },
        "evaluation": {"examples": 2},
        "output": str(out),
    }
    return load_recipe({**content, **changes})


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "dino"
    return run(recipe(folder, out, training={**_training(), "save_steps": 2}), callbacks=[])


def _training():
    return {
        "max_steps": 4,
        "batch_size": 4,
        "device": "cpu",
        "keep_best": False,
        "learning_rate": 0.01,
        "logging_steps": 2,
    }


class Dies(TrainerCallback):
    """Stops the process, as far as the run can tell."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise ConnectionAbortedError


def test_an_interrupted_run_has_the_teacher_and_the_centre_of_one_that_was_not(folder, trained, tmp_path):
    training = {**_training(), "save_steps": 2}
    with pytest.raises(ConnectionAbortedError):
        run(recipe(folder, tmp_path / "b", training=training), callbacks=[Dies()])
    again = run(recipe(folder, tmp_path / "b", training={**training, "resume": True}), callbacks=[])
    kept = [load_file(f"{place}/checkpoints/checkpoint-4/objective.safetensors") for place in (trained.folder, again.folder)]  # fmt: skip
    assert kept[0].keys() == kept[1].keys() and all(torch.equal(v, kept[1][k]) for k, v in kept[0].items())
    assert any("teacher" in k for k in kept[0]) and any(k.endswith(".centre") for k in kept[0])
    centre = next(v for k, v in kept[0].items() if k.endswith(".centre"))
    assert centre.abs().max() > 0
    ended = [load_file(f"{place}/adapter/adapter.safetensors") for place in (trained.folder, again.folder)]
    assert all(torch.equal(v, ended[1][k]) for k, v in ended[0].items())
    losses = [[entry["loss"] for entry in told.history if "loss" in entry] for told in (trained, again)]
    assert len(losses[0]) == 2 and losses[0][-1] == losses[1][-1]


def test_the_run_ends_with_the_teacher_and_is_scored_beside_its_base(trained):
    kept = load_file(f"{trained.folder}/checkpoints/checkpoint-4/objective.safetensors")
    ended = load_file(f"{trained.folder}/adapter/adapter.safetensors")
    values = [v for k, v in kept.items() if "teacher" in k]
    own = [v for v in ended.values() if v.dim() == 2 and v.shape[0] == 2]  # A of q and v
    assert own and all(any(v.shape == t.shape and torch.equal(v, t) for t in values) for v in own)
    assert {"loss", "knn", "linear_probe", "knn_before", "linear_probe_before"} <= set(trained.metrics)


def test_features_of_pictures_are_told_and_drawn(trained, folder, tmp_path, capsys):
    files = [str(folder / f"{i}.png") for i in range(3)]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", trained.folder, *files, "--output", str(tmp_path)])
    assert not stopped.value.code and "nearest: picture" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines[0]["prediction"]["embedding"]) == 16
    assert np.asarray(Image.open(tmp_path / lines[0]["pictures"]["patches"])).shape == (224, 224, 3)
    loaded = load_run(trained.folder)
    vectors = np.array([line["prediction"]["embedding"] for line in lines])
    with torch.no_grad():
        pixels = loaded.processor([Image.open(file) for file in files])["pixel_values"]
        tokens = loaded.model.encoder(pixel_values=pixels).last_hidden_state
    np.testing.assert_allclose(vectors, tokens[:, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_masked_autoencoding_runs_and_its_encoder_is_the_next_stages_base(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {
        "model": {"composite": "view-encoder", "encoder": ENCODER, "decoder": DECODER},
        "task": {"name": "self-supervised", **ALONE},
        "objective": ["masked-autoencoding"],
    }
    second = {
        "model": {"from_config": ENCODER["from_config"]}, "task": "image-classification", "start": "merged", "method": "linear-probe", "objective": "model",
    }  # fmt: skip
    whole = recipe(folder, "out", stages=[{"name": "extended", **first}, {"name": "probe", **second}])
    from adaptome.training import run_stages

    found = run_stages(whole, callbacks=[])
    told = found.stages["1-extended"]
    assert 0 < told.metrics["loss/masked-autoencoding"] < 5 and "accuracy" in found.last.metrics
    encoder, loading = AutoModel.from_pretrained(
        "out/1-extended/merged", add_pooling_layer=False, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    probe = load_run("out/2-probe").model
    assert torch.equal(probe.vit.layers[1].mlp.fc1.weight, encoder.layers[1].mlp.fc1.weight)


def test_pictures_of_bands_go_through_both_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["category,location_id,image_id,timestamp"]
    for number in range(8):
        kind = ("port", "dam")[number % 2]
        file = tmp_path / "train" / kind / f"{kind}_{number}" / f"{kind}_{number}_0.tif"
        file.parent.mkdir(parents=True)
        rasterio = pytest.importorskip("rasterio")
        about = dict(driver="GTiff", height=20, width=24, count=6, dtype="uint16")
        with rasterio.open(file, "w", **about) as out:
            out.write(rng.integers(0, 3000, (6, 20, 24), dtype=np.uint16))
        lines.append(f"{kind},{number},0,2016-01-01T00:00:00Z")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    numbers = {"take": [2, 3, 4, 6], "mean": [1500.0] * 4, "std": [800.0] * 4}
    bands = {"groups": [[0, 1, 2], [3]], "rgb": [2, 1, 0]}
    whole = recipe(
        tmp_path, "out",
        data={"train": "train.csv", "test": "train.csv", "format": "fmow", "validation_fraction": 0},
        training={**_training(), "max_steps": 2},
        stages=[
            {"name": "extended", "model": {"composite": "view-encoder", "encoder": ENCODER, "decoder": DECODER, "bands": bands}, "task": {"name": "self-supervised", **ALONE, "bands": numbers}, "objective": ["masked-autoencoding"]},
            {"name": "tuned", "start": "merged", "model": {"composite": "feature-classifier", "encoder": ENCODER, "normalize": False}, "task": {"name": "image-classification", "bands": numbers}, "method": {"name": "lora", "targets": ["encoder.q"], "r": 2}, "objective": "model"},
        ],
    )  # fmt: skip
    from adaptome.training import run_stages

    found = run_stages(whole, callbacks=[])
    assert "accuracy" in found.last.metrics and found.stages["1-extended"].metrics["loss"] > 0
    loaded = load_run("out/2-tuned")
    assert loaded.model.encoder.config.channel_groups == bands["groups"]
    told = loaded.task.predict(
        loaded.model, loaded.processor, [str(tmp_path / "train/port/port_0/port_0_0.tif")]
    )
    assert told[0]["label"] in ("port", "dam")
    trained_patches = load_run("out/1-extended").model.encoder.embeddings.patch_embeddings
    assert trained_patches.groups == bands["groups"]


def test_views_are_drawn_anew_in_each_epoch_and_alike_when_drawn_again(folder):
    task = get_task("self-supervised", local_views=2)
    spec = recipe(folder, "x").model
    processor = task.load_processor(spec)
    data = task.prepare(load_splits(name=str(folder / "grounds.npz"), validation_fraction=0), processor)
    rows = data["train"]
    first = stacked([rows[0], rows[1]])
    assert {k: tuple(v.shape) for k, v in first.items()} == {
        "pixel_values": (2, 2, 3, 32, 32), "local_pixels": (2, 2, 3, 16, 16), "masks": (2, 2, 16),
    }  # fmt: skip
    assert torch.equal(first["pixel_values"][0], rows[0]["pixel_values"])
    rows.set_epoch(1)
    assert not torch.equal(first["pixel_values"][0], rows[0]["pixel_values"])
    assert "label" not in first and data.labels is None


def test_bands_are_stacked_normalised_and_counted():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 9, (6, 4, 3)).astype(np.uint16) for _ in range(3)]
    assert read_bands(parts, None, 9).shape == (9, 6, 4)
    taken = read_bands(parts[0], [3, 1], 2)
    np.testing.assert_array_equal(taken[0].numpy(), parts[0][..., 2])
    holed = parts[0].astype(np.float32)
    holed[0, 0] = np.nan
    assert read_bands(holed, None, 3).isfinite().all()
    made = BandProcessor(BandOptions(mean=[1, 2, 3], std=[2, 2, 4]), 6)([np.full((6, 6, 3), 5)])[
        "pixel_values"
    ]
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([2.0, 1.5, 0.5]))
    with pytest.raises(DataError, match=r"has 3 bands; task\.bands\.take=\[4\]"):
        read_bands(parts[0], [4], 1)
    with pytest.raises(DataError, match=r"has 3 bands, and task\.bands gives mean and std of 2"):
        read_bands(parts[0], None, 2)
    with pytest.raises(RecipeError, match="number for each band"):
        get_task("self-supervised", bands={"mean": [1, 2], "std": [1]})


def test_probes_tell_what_features_tell():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    apart = np.eye(4)[labels] + rng.normal(0, 0.2, (100, 4))
    assert nearest_accuracy(apart, labels) > 0.95 and linear_accuracy(apart, labels) > 0.95
    noise = rng.normal(size=(100, 4))
    assert nearest_accuracy(noise, labels) < 0.5 and linear_accuracy(noise, labels) < 0.5
    assert probed(apart, ["a"] * 100) == {} and set(probed(apart[:5], ["a", "a", "b", "b", "c"])) == {"knn"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"name": "self-supervised", "image_size": 36}}, r"task\.image_size=36: patches of 8 pixels"),
        ({"training": {"max_steps": 1, "device": "cpu"}, "data": {"name": "grounds.npz", "validation_fraction": 0.2}}, r"training\.keep_best=false"),
        ({"training": {"max_steps": 1, "device": "cpu", "keep_best": False, "fsdp": True}}, r"leave training\.fsdp out"),
        ({"training": {"max_steps": 1, "device": "cpu", "keep_best": False, "ema": 0.9}}, r"leave training\.ema out"),
        ({"model": {"composite": "view-encoder", "encoder": {"from_config": {"model_type": "swin"}}, "bands": {"groups": [[0]]}}}, r"give task\.bands"),
        ({"model": {"composite": "view-encoder", "encoder": {"from_config": {"model_type": "bert"}}}}, "has no patches"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(changes, said, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match=said):
        run(recipe(folder, tmp_path / "x", **changes), callbacks=[])


def test_grounds_are_the_same_for_a_seed_and_the_few_are_no_training_pictures(monkeypatch):
    for kinds in COUNTS.values():
        for split in kinds:
            monkeypatch.setitem(kinds, split, 16)
    known = makers()
    first, again, other = (known["few-night-grounds"](seed) for seed in (3, 3, 4))
    whole = known["night-grounds"](3)
    images = [made["train"].columns["image"] for made in (first, again, other, whole)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2]) and not np.array_equal(images[0], images[3])
    assert np.array_equal(first["test"].columns["image"], whole["test"].columns["image"])
    grey = first["test"].columns["image"]
    assert grey.shape == (16, 32, 32, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert set(first["test"].columns["label"]) == set(first["train"].columns["label"])
