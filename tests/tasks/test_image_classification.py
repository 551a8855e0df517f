"""Image classification on arrays and files, without torchvision."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adaptome.core.errors import DataError, RecipeError
from adaptome.data import load_splits
from adaptome.tasks import get_task
from adaptome.tasks.image_classification import to_rgb
from tests.tasks.tiny import fit, small, spec

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def model():
    return spec(from_config=small("vit", image_size=16, patch_size=8))


def striped(kind: int, rows: int, channels: int | None = 3, seed: int = 0) -> np.ndarray:
    """Bright above (0) or below (1), with noise."""
    shape = (rows, 12, 10) if channels is None else (rows, 12, 10, channels)
    images = np.random.default_rng(seed + kind).integers(0, 60, shape)
    images[:, 6 * kind : 6 * kind + 6] += 180
    return images.astype(np.uint8)


def archive(path: Path, channels: int | None) -> str:
    x = np.concatenate([striped(0, 8, channels), striped(1, 8, channels)])
    y = np.repeat([0, 1], 8)
    np.savez(path, x_train=x, y_train=y, x_validation=x[::3], y_validation=y[::3], classes=["above", "below"])
    return str(path)


@pytest.mark.parametrize("channels", [3, 1, None])
def test_it_learns_arrays_of_every_kind(tmp_path, model, channels):
    torch.manual_seed(0)
    task = get_task("image-classification")
    processor = task.load_processor(model)
    data = task.prepare(load_splits(archive(tmp_path / "a.npz", channels)), processor)
    assert task.labels == ["above", "below"]
    assert data.remove_unused_columns is False
    batch = data.collator([data["train"][i] for i in (0, 9)])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].tolist() == [0, 1]
    built = task.load_model(model, processor)
    assert task.head_patterns(built) == ["classifier"]
    assert fit(built, data["train"], data.collator, steps=40, lr=2e-3) < 0.2
    found = task.predict(
        built, processor, [striped(1, 1, channels, seed=9)[0], striped(0, 1, channels, seed=9)[0]]
    )
    assert [f["label"] for f in found] == ["below", "above"]


def test_files_and_arrays_give_the_same_pixels(tmp_path, model):
    for kind, name in enumerate(("above", "below")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i, array in enumerate(striped(kind, 4)):
            Image.fromarray(array).save(tmp_path / "images" / name / f"{i}.png")
    task = get_task("image-classification", image_size=16)
    processor = task.load_processor(model)
    data = task.prepare(load_splits(str(tmp_path / "images"), validation_fraction=0.25), processor)
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 6, "validation": 2}
    row = next(data["train"][i] for i in range(6) if data["train"][i]["labels"] == 1)
    assert data.collator([row])["pixel_values"].shape == (1, 3, 16, 16)
    built = task.load_model(model, processor)
    file = tmp_path / "images" / "below" / "0.png"
    assert task.predict(built, processor, [file]) == task.predict(built, processor, [striped(1, 4)[0]])


def test_metrics_from_the_definition():
    task = get_task("image-classification")
    result = SimpleNamespace(predictions=np.array([[2.0, 1], [0, 1]]), label_ids=np.array([0, 0]))
    assert task.metrics(result)["accuracy"] == 0.5


def test_pixels_keep_their_values():
    array = striped(0, 1)[0]
    assert np.array_equal(np.asarray(to_rgb(array)), array)
    gray = array[..., :1].astype(np.int64)
    assert np.array_equal(np.asarray(to_rgb(gray)), np.repeat(array[..., :1], 3, axis=-1))


def test_unusable_images_are_refused(tmp_path, model):
    with pytest.raises(DataError, match=r"images are float64 from 0.0 to 1.0; expected whole numbers"):
        to_rgb(np.linspace(0, 1, 12).reshape(3, 4))
    with pytest.raises(DataError, match=r"the array has the shape \[2, 3, 4, 5\]; expected"):
        to_rgb(np.zeros((2, 3, 4, 5), np.uint8))
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"torn\.png is not an image that can be read"):
        to_rgb(tmp_path / "torn.png")
    task = get_task("image-classification")
    for name, x, text in (
        ("f", np.zeros((4, 5, 5), np.float32), "images are float32; expected uint8"),
        ("c", np.zeros((4, 5, 5, 7), np.uint8), r"image has the shape \[5, 5, 7\]"),
    ):
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=[0, 1, 0, 1])
        with pytest.raises(DataError, match=rf"{name}\.npz: {text}"):
            task.prepare(
                load_splits(str(tmp_path / f"{name}.npz"), validation_fraction=0), task.load_processor(model)
            )


def test_a_model_without_an_image_processor_is_told():
    with pytest.raises(RecipeError, match="bert has no image processor"):
        get_task("image-classification").load_processor(spec(from_config=small("bert")))


def test_an_image_size_reaches_any_processor_on_disk(tmp_path, model):
    task = get_task("image-classification", image_size=24)
    get_task("image-classification").load_processor(model).save_pretrained(tmp_path)
    processor = task.load_processor(spec(name=str(tmp_path)))
    assert processor(to_rgb(striped(0, 1)[0]), return_tensors="pt")["pixel_values"].shape[-2:] == (24, 24)


def test_a_processor_that_crops_does_not_fill_small_pictures_up():
    """DINOv2's crops to 224 pixels by default, and filled pictures of 32 up to that."""
    task = get_task("image-classification")
    spec = SimpleNamespace(
        tokenizer=None, name=None, revision=None, from_config={"model_type": "dinov2", "image_size": 32}
    )
    pixels = task.load_processor(spec)([np.zeros((40, 40, 3), np.uint8)], return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape) == (1, 3, 32, 32)
