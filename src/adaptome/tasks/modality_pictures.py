"""Pictures of one place in several modalities as the inputs of a segmenter: read, cut and changed alike, and brought into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from adaptome.core.errors import DataError
from adaptome.data.geometry import Geometry, cropped
from adaptome.data.masks import IGNORED, classes, read_mask
from adaptome.data.rasters import Header, Raster, header_of, read_raster, read_rgb, require_alike
from adaptome.data.splits import Split
from adaptome.tasks.modality_sets import AVAILABLE, SetOptions, chosen_sets, filled, mask_of
from adaptome.tasks.pixels import stacked_masks

#: what CMNeXt does to training pictures
GEOMETRY = Geometry(mirror=True, scale=(0.5, 2.0))


class MultimodalSegmentationOptions(SetOptions):
    modalities: list[str] = Field(
        default=["rgb", "depth"],
        min_length=2,
        description="columns of pictures, in the order of the model's encoders",
    )
    classes: int | list[str] = Field(
        default=40, description="of a pixel: their names, or how many there are; 40 in NYUDv2"
    )
    first: int = Field(default=0, ge=0, description="the first class's number in masks; 1 in NYUDv2's")
    ignored: int = Field(
        default=IGNORED, description="what a mask holds where the class is not known; 0 in NYUDv2's"
    )
    bands: dict[str, list[int]] = Field(
        default_factory=dict,
        description="modality -> the numbers, from 1, of its bands in pictures that have more than it, e.g. {thermal: [4]}",
    )
    ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="modality -> the values that are black and white, where its pictures are not of 0 to 255",
    )
    crop: int = Field(default=480, ge=8, description="training pictures are cut to windows of this side")
    augment: bool = Field(
        default=False, description="mirror and scale the training pictures, see `data.geometry`"
    )
    augment_seed: int = Field(default=0, ge=0, description="of what is drawn for that, and of the windows")

    @property
    def names(self) -> list[str]:
        told = self.classes
        return [f"class {number}" for number in range(told)] if isinstance(told, int) else told


def is_there(value: Any) -> bool:
    """Whether a cell holds something."""
    return value is not None and not (
        isinstance(value, np.ndarray) and value.dtype == object and value.item() is None
    )


def plain(value: Any) -> Any:
    """numpy's own text as text."""
    return str(value) if isinstance(value, np.str_) else value


def picture(one: Any, name: str, own: MultimodalSegmentationOptions) -> Raster:
    """A modality's picture [h, w, 3] of uint8; a single band three times over.

    Raises:
        DataError: it cannot be read, lacks a band, or holds what `ranges` does not tell of.
    """
    told = own.bands.get(name)
    bands = None if told is None else tuple(told * 3 if len(told) == 1 else told)
    if bands is not None:
        one = read_raster(one, fourth=max(bands) > 3)
        if one.pixels.shape[-1] == 1:  # it has been taken out already
            bands = None
    try:
        return read_rgb(one, bands, own.ranges.get(name))
    except DataError as error:
        raise DataError(str(error).replace("task.stretch='[", f"task.ranges='{{{name}: [").replace("]'.", "]}'.")) from error  # fmt: skip


def read_classes(one: Any, own: MultimodalSegmentationOptions) -> tuple[np.ndarray, str]:
    """A mask of class numbers from 0, 255 where the class is not known, and its name.

    Raises:
        DataError: it cannot be read, or holds a number that is no class.
    """
    stored, name = read_mask(one)
    if not np.issubdtype(stored.dtype, np.integer):
        raise DataError(f"{name}: class numbers are stored as {stored.dtype}; expected whole numbers.")
    moved = np.where(stored == own.ignored, IGNORED, stored.astype(np.int64) - own.first)
    return classes(moved, len(own.names), name), name


class Pictures:
    """A split's rows as pictures [h, w, 3] and a mask [h, w]; with a generator cut and changed, all alike."""

    def __init__(self, split: Split, options: MultimodalSegmentationOptions):
        self.options = options
        self.rows = split.rows.select_columns(["mask", *options.modalities]).with_format("numpy")

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        row, own = self.rows[index], self.options
        mask, name = read_classes(plain(row["mask"]), own)
        made: dict[str, Any] = {}
        for modality in own.modalities:
            if is_there(row[modality]):
                raster = picture(plain(row[modality]), modality, own)
                require_alike(header_of(raster), Header(name, mask.shape[1], mask.shape[0], raster.place))
                made[modality] = raster.pixels
        if rng is None:
            return {**made, "mask": mask}
        if own.augment:
            drawn = GEOMETRY.draw(rng, *mask.shape)
            made = {modality: drawn.picture(pixels) for modality, pixels in made.items()}
            mask = drawn.numbers(mask, IGNORED)
        window = cropped(rng, mask.shape[0], mask.shape[1], own.crop)
        return {**{m: pixels[window] for m, pixels in made.items()}, "mask": mask[window]}


class PictureCollator:
    """Rows of `Pictures` with their sets -> pixels: modality -> [batch, 3, h, w], normalised, what is missing filled; available
    [batch, modalities]; and labels [batch, h, w] of uint8 where there are masks.
    """

    def __init__(self, processor: Any, options: MultimodalSegmentationOptions):
        self.processor, self.options = processor, options

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        own = self.options
        sets = chosen_sets(rows)
        available = mask_of(sets, own.modalities)
        blank = [np.zeros_like(next(row[n] for n in own.modalities if n in row)) for row in rows]
        pixels = {}
        for place, name in enumerate(own.modalities):
            values = self.processor(
                [row.get(name, nothing) for row, nothing in zip(rows, blank, strict=True)]
            )
            pixels[name] = filled(values, available[:, place], own.fill.get(name, 0.0))
        batch: dict[str, Any] = {"pixels": pixels, AVAILABLE: available}
        if "mask" in rows[0]:
            batch["labels"] = stacked_masks([row["mask"] for row in rows], IGNORED).to(torch.uint8)
        return batch
