"""Segmentation by pictures of several modalities (RGB with depth, thermal, ...), some of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.core.steer import steer
from adaptome.data.geometry import Geometry, cropped
from adaptome.data.masks import IGNORED, classes, read_mask
from adaptome.data.rasters import Header, Raster, header_of, mask_bytes, read_rgb, require_alike
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.models import load_composite
from adaptome.report.shown import Shown, overlaid
from adaptome.tasks.base import ModelSpec, Prepared, Task, register_task
from adaptome.tasks.inference import evaluating
from adaptome.tasks.modality_sets import (
    AVAILABLE,
    SetOptions,
    SetRows,
    by_set,
    chosen_sets,
    facts_of,
    filled,
    given_by_name,
    key,
    mask_of,
    numbered,
)
from adaptome.tasks.pixel_scores import confusion, mean_iou
from adaptome.tasks.pixels import PixelProcessor, load_pixel_processor, stacked_masks
from adaptome.tasks.showing import Given, covered

MODEL = "modality-segmenter"
#: what CMNeXt does to training pictures
GEOMETRY = Geometry(mirror=True, scale=(0.5, 2.0))


class MultimodalSegmentationOptions(SetOptions):
    modalities: list[str] = Field(
        default=["rgb", "depth"],
        min_length=2,
        description="columns of pictures, in the order of the model's encoders",
    )
    classes: int | list[str] = Field(description="of a pixel: their names, or how many there are")
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


@register_task("multimodal-segmentation")
class MultimodalSegmentation(Task):
    """Columns: mask and one for each modality: files, or arrays [h, w] and [h, w(, bands)]; None where a row lacks it.

    `predict` takes mappings modality -> path, PIL image or array, of all modalities or some; on a command line `rgb=a.png depth=b.png`.
    """

    Options = MultimodalSegmentationOptions
    options: MultimodalSegmentationOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "modalities"}
    takes = ENDINGS

    @property
    def primary_metric(self) -> str:
        return "miou"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> PixelProcessor:
        return load_pixel_processor(first_encoder(model))

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("mask")
        self.labels = self.options.names
        made, notes = {}, list[str]()
        for name, split in splits.items():
            require_columns(split, name, self.options.modalities)
            made[name] = SetRows(split, self.options, Pictures(split, self.options), name == "train")
            notes += made[name].notes(name)
        collator = PictureCollator(processor, self.options)
        return Prepared(
            made, collator, self.labels, remove_unused_columns=False, notes=notes,
            aside=(AVAILABLE,), label_names=("labels", AVAILABLE),
        )  # fmt: skip

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return facts_of(batch[AVAILABLE], self.options.modalities)

    def inputs(self, rows: Any) -> list[Any]:
        names = self.options.modalities
        return [{n: plain(row[n]) for n in names if is_there(row[n])} for row in rows.with_format("numpy")]

    def truths(self, rows: Any) -> list[Any] | None:
        if "mask" not in rows.column_names:
            return None
        return [covered(read_classes(plain(row["mask"]), self.options)[0] % IGNORED, self.options.names) for row in rows.with_format("numpy")]  # fmt: skip

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `modality-segmenter` with an encoder for each of the task's modalities."""
        made: Any = load_composite(model, MODEL, labels=len(self.options.names))
        if made.modalities != self.options.modalities:
            raise RecipeError(
                f"task.modalities is {self.options.modalities}, and the model has encoders for {made.modalities}, in this order. Make them the same."
            )
        return made  # type: ignore[no-any-return]

    # -- scores --------------------------------------------------------------------------------------------------------

    def counted(self, logits: Any, labels: Any) -> Tensor:
        maps = logits[0] if isinstance(logits, tuple) else logits
        counts = confusion(maps.argmax(1), labels[0], len(self.options.names)).flatten(1)
        return torch.cat([numbered(labels[1])[:, None], counts], 1)

    def metrics(self, result: Any) -> dict[str, float]:
        found, count = np.asarray(result.predictions), len(self.options.names)

        def figures(places: np.ndarray) -> dict[str, float]:
            counts = found[places, 1:].sum(0).reshape(count, count)
            return mean_iou(counts) | {"accuracy": float(np.trace(counts) / max(counts.sum(), 1))}

        return by_set(found[:, 0], self.options, figures)

    # -- use -----------------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        return given_by_name(words, self.options)

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """What is where, by the modalities that are given.

        Returns a list of {"available" (the set's name), "mask" [h, w] of class numbers, "place" (see `data.rasters`, or None)}.

        Raises:
            DataError: a picture that cannot be read, two that do not lie pixel by pixel, or a required modality that is missing.
        """
        made, own = list[Any](), self.options
        with evaluating(model) as device:
            for number, one in enumerate(inputs, 1):
                members = own.check_given(one, f"input {number}")
                read = {name: picture(one[name], name, own) for name in own.modalities if name in members}
                sizes = [header_of(raster) for raster in read.values()]
                for other in sizes[1:]:
                    require_alike(sizes[0], other)
                rows = [{**{n: r.pixels for n, r in read.items()}, "present": members, AVAILABLE: members}]
                batch = PictureCollator(processor, own)(rows)
                pixels = {name: values.to(device) for name, values in batch["pixels"].items()}
                with steer(**facts_of(batch[AVAILABLE], own.modalities)):
                    mask = model(pixels=pixels)["logits"].argmax(1)[0].byte().cpu().numpy()
                place = next(iter(read.values())).place
                made.append({AVAILABLE: key(members), "mask": mask, "place": place})
        return made

    def shown(self, one: Any, prediction: Any) -> Shown:
        from PIL import Image

        own, mask = self.options, prediction["mask"]
        pictures = {n: Image.fromarray(picture(one[n], n, own).pixels) for n in own.modalities if n in one}
        first = next(iter(pictures.values()))
        made = {"segments": overlaid(first, mask), "mask": Image.fromarray(mask)}
        files = {} if prediction["place"] is None else {"mask.tif": mask_bytes(mask, prediction["place"])}
        return Shown(covered(mask, own.names), picture=first, made=made, files=files)


def first_encoder(model: ModelSpec) -> Any:
    """Where the first modality's encoder comes from: its processor is that of all."""
    encoders: Mapping[str, Any] = getattr(model, "settings", {}).get("encoders", {})
    if model.name is not None or not encoders:
        return model
    given = next(iter(encoders.values()))
    part = {"name": given} if isinstance(given, str) else dict(given)
    return SimpleNamespace(
        tokenizer=model.tokenizer, name=part.get("name"), revision=part.get("revision"), from_config=None
    )


def require_columns(split: Split, name: str, columns: Sequence[str]) -> None:
    """Every modality is a column, though a row may lack it.

    Raises:
        DataError: there is no such column.
    """
    for column in columns:
        if column not in split.rows.column_names:
            raise DataError(
                f"{split.source}: the {name} split has no column {column!r}. Columns there: {', '.join(split.rows.column_names)}.\n"
                "  Name those that there are: task.modalities; or say which one it is: data.columns."
            )


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
        from adaptome.data.rasters import read_raster

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
