"""Image classification: one label per image, from files or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.inference import chunks, labelled
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.metrics import classification_metrics
from adaptome.tasks.models import head_modules, load_image_processor, load_labelled_config, load_pretrained


class ImageClassificationOptions(TaskOptions):
    image_size: int | None = Field(
        default=None, ge=1, description="side in pixels; default: the image processor's own"
    )
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the labels and their order; default: from train"
    )


@register_task("image-classification")
class ImageClassification(Task):
    """Columns: image (files, or arrays [height, width(, channels)] of uint8) and label."""

    Options = ImageClassificationOptions
    options: ImageClassificationOptions

    @property
    def primary_metric(self) -> str:
        return "accuracy"

    def load_processor(self, model: ModelSpec) -> Any:
        return load_image_processor(model, self.options.image_size)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("image", "label")
        labels = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = labels.names
        made = {}
        for name, split in splits.items():
            _check_images(split)
            made[name] = _with_labels(split, numbers(split, name, "label", labels))
        # The collator makes the pixels, so that a large data set is never held as floats.
        return Prepared(made, ImageCollator(processor), self.labels, remove_unused_columns=False)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        from transformers import AutoModelForImageClassification

        config = load_labelled_config(model, self.labels)
        built, self.new_modules = load_pretrained(AutoModelForImageClassification, model, config)
        built.accepts_loss_kwargs = False  # type: ignore[assignment]  # its loss is a mean over the batch
        return built

    def head_patterns(self, model: nn.Module) -> list[str]:
        return head_modules(model)

    def metrics(self, result: Any) -> dict[str, float]:
        return classification_metrics(argmax(result.predictions), np.asarray(result.label_ids))

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Label and scores of each image: a path, a PIL image or an array.

        Returns a list of {"label", "score", "scores"}.
        """
        collate = ImageCollator(processor)
        batches = (collate([{"image": image} for image in part]) for part in chunks(inputs, batch_size))
        return labelled(model, batches, self.labels or [])


class ImageCollator:
    """Rows with `image` and `labels` -> pixel_values [batch, channels, height, width] and labels [batch]."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        images = [to_rgb(row["image"]) for row in rows]
        batch = {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def to_rgb(image: Any) -> Any:
    """An RGB PIL image of a path, a PIL image or an array [height, width(, 1, 3 or 4)] of uint8.

    Raises:
        DataError: not such an array, or a file that cannot be decoded.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return opened.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DataError(f"{image} is not an image that can be read: {error}") from error
    array = np.asarray(image)
    _check_array(array.shape, "the array")
    if array.dtype != np.uint8:
        if array.size and (
            array.min() < 0 or array.max() > 255 or not np.issubdtype(array.dtype, np.integer)
        ):
            raise DataError(
                f"images are {array.dtype} from {array.min()} to {array.max()}; expected whole numbers from 0 to 255."
            )
        array = array.astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array).convert(
        "RGB"
    )


def _check_array(shape: Sequence[int], what: str) -> None:
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[-1] not in (1, 3, 4)):
        raise DataError(
            f"{what} has the shape {list(shape)}; expected [height, width] or [height, width, channels], channels 1, 3 or 4."
        )


def _check_images(split: Split) -> None:
    """Look at the column's type: the shape and dtype of arrays, or files."""
    feature = split.rows.features["image"]
    if hasattr(feature, "shape"):
        _check_array(feature.shape, f"{split.source}: image")
        if not np.issubdtype(np.dtype(feature.dtype), np.integer):
            raise DataError(
                f"{split.source}: images are {feature.dtype}; expected uint8, 0 to 255 (the processor scales them)."
            )


def _with_labels(split: Split, labels: list[int]) -> Any:
    rows = split.rows.select_columns(["image"])
    if hasattr(rows.features["image"], "shape"):
        rows = rows.with_format("numpy")
    return rows.add_column("labels", labels)
