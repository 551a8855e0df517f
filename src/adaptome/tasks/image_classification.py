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
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split
from adaptome.models import CompositeModel, is_composite
from adaptome.report.shown import Shown
from adaptome.tasks.bands import BandOptions, BandProcessor
from adaptome.tasks.base import ModelSpec, register_task
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.models import load_config, load_image_processor
from adaptome.tasks.showing import shown
from adaptome.tasks.signal_classification import SignalClassification, SignalOptions

CLASSIFIER = "feature-classifier"


class ImageClassificationOptions(SignalOptions):
    image_size: int | None = Field(
        default=None, ge=1, description="side in pixels; default: the image processor's own"
    )
    bands: BandOptions | None = Field(
        default=None,
        description="for pictures other than RGB, of an encoder with groups of bands: see `tasks.bands`",
    )


@register_task("image-classification")
class ImageClassification(SignalClassification):
    """Columns: image (files, or arrays [height, width(, channels)] of uint8) and label.

    `predict` takes paths, PIL images and arrays.
    """

    Options = ImageClassificationOptions
    options: ImageClassificationOptions
    column, classifier = "image", "AutoModelForImageClassification"
    takes = ENDINGS

    def shown(self, one: Any, prediction: Any) -> Shown:
        return shown(one, prediction, to_rgb(one) if self.options.bands is None else None)

    def load_processor(self, model: ModelSpec) -> Any:
        own = self.options
        if own.bands is None:
            return load_image_processor(encoder_spec(model), own.image_size)
        return BandProcessor(own.bands, own.image_size or int(load_config(encoder_spec(model)).image_size))

    def dataset(self, split: Split, labels: list[int], processor: Any) -> Any:
        if self.options.bands is None:
            _check_images(split)
        return with_labels(split, labels)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """transformers' own classifier; a `feature-classifier` where the recipe names one, or bands are grouped."""
        composite = getattr(model, "composite", None) is not None
        if composite or self.options.bands is not None or (model.name and is_composite(model.name)):
            return load_around(model, CLASSIFIER, labels=len(self.labels or []))
        return super().load_model(model, processor)

    def head_patterns(self, model: nn.Module) -> list[str]:
        return ["head"] if isinstance(model, CompositeModel) else super().head_patterns(model)

    def collator(self, processor: Any) -> ImageCollator:
        """Makes the pixels, so that a large data set is never held as floats."""
        return ImageCollator(processor)


class ImageCollator:
    """Rows with `image` and `labels` -> pixel_values [batch, channels, height, width] and labels [batch]."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        bands = isinstance(self.processor, BandProcessor)
        images = [row["image"] if bands else to_rgb(row["image"]) for row in rows]
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


def with_labels(split: Split, labels: list[int]) -> Any:
    """A split's images, as the collator takes them, with the numbers of their labels as `labels`."""
    rows = split.rows.select_columns(["image"])
    if hasattr(rows.features["image"], "shape"):
        rows = rows.with_format("numpy")
    return rows.add_column("labels", labels)
