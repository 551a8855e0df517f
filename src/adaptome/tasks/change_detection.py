"""Change detection: what changed between two pictures of one place, pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.data.geometry import Geometry, cropped
from adaptome.data.masks import IGNORED, binary, read_mask
from adaptome.data.rasters import (
    Header,
    header_of,
    mask_bytes,
    read_header,
    read_rgb,
    require_alike,
)
from adaptome.data.readers.change_pairs import has_pairs, pairs_of
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.report.shown import Shown, overlaid
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.inference import evaluating
from adaptome.tasks.pixel_scores import binary_metrics, confusion
from adaptome.tasks.pixels import PixelProcessor, load_pixel_processor, stacked_masks
from adaptome.tasks.showing import Given

MODEL = "change-detector"
#: PeftCD's changes of training pairs
GEOMETRY = Geometry(dihedral=True, degrees=30, distortion=0.15)


class ChangeDetectionOptions(TaskOptions):
    crop: int = Field(
        default=256, ge=8, description="training pictures that are larger are cut to windows of this side"
    )
    augment: bool = Field(
        default=False, description="mirror, turn and distort the training pairs, see `data.geometry`"
    )
    augment_seed: int = Field(default=0, ge=0, description="of what is drawn for that, and of the windows")
    ignored: int | None = Field(
        default=None, description="what a mask holds where it is not known whether something changed"
    )
    threshold: int | None = Field(
        default=None,
        description="what a mask holds from where on a pixel changed; default: 1 in masks of 0 and 1, else 128",
    )
    bands: list[int] | None = Field(
        default=None,
        min_length=3,
        max_length=3,
        description="numbers, from 1, of a raster's bands for red, green and blue",
    )
    stretch: tuple[float, float] | None = Field(
        default=None, description="a raster's values that are black and white, where it is not of 0 to 255"
    )
    metric: Literal["iou", "f1"] = Field(default="iou", description="what decides which checkpoint is best")


@register_task("change-detection")
class ChangeDetection(Task):
    """Columns: before, after and mask (files, or arrays of uint8: [h, w, 3], [h, w, 3] and [h, w]).

    Figures are of the class of change, from one confusion matrix over all known pixels of a split. `predict` takes pairs (before, after) of
    paths, PIL images or arrays; on a command line two files, or folders of pairs as training has them.
    """

    Options = ChangeDetectionOptions
    options: ChangeDetectionOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "change-pairs", "folder": "change-pairs"}
    takes = ENDINGS

    @property
    def primary_metric(self) -> str:
        return self.options.metric

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> PixelProcessor:
        return load_pixel_processor(encoder_spec(model))

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("before", "after", "mask")
        for split in splits.values():
            _check(split)
        self.labels = ["same", "changed"]
        made = {name: Pairs(split, self.options, name == "train") for name, split in splits.items()}
        return Prepared(made, PairCollator(processor), self.labels, remove_unused_columns=False)

    def inputs(self, rows: Any) -> list[Any]:
        return [(row["before"], row["after"]) for row in _arrays(rows)]

    def truths(self, rows: Any) -> list[Any] | None:
        if "mask" not in rows.column_names:
            return None
        return [_told(self._mask(row["mask"])) for row in _arrays(rows)]

    def _mask(self, one: Any) -> np.ndarray:
        return binary(read_mask(one)[0], self.options.ignored, self.options.threshold)

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `change-detector`: as the recipe names it, or around the encoder that it names."""
        return load_around(model, MODEL, labels=2)

    def head_patterns(self, model: nn.Module) -> list[str]:
        return ["decoder"]

    # -- scores --------------------------------------------------------------------------------------------------------

    def counted(self, logits: Any, labels: Any) -> Tensor:
        maps = logits[0] if isinstance(logits, tuple) else logits
        return confusion(maps.argmax(1), labels, 2)

    def metrics(self, result: Any) -> dict[str, float]:
        return binary_metrics(np.asarray(result.predictions).sum(0))

    # -- use -----------------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        """Two files, the earlier first, and so on by twos; a folder stands for the pairs in it, two folders for their files of one name."""
        found: list[Given] = []
        loose: list[str] = []
        for word in words:
            path = Path(word)
            if path.is_dir() and has_pairs(path):
                found += [_given(str(a), str(b)) for a, b, _ in pairs_of(path)]
            elif path.exists():
                loose.append(word)
            else:
                raise DataError(
                    f"no such file or folder: {word}. This run takes pairs: before.png after.png."
                )
        if len(loose) % 2:
            raise DataError(
                f"{loose[-1]} has no counterpart: give pictures by twos, before.png after.png, or a folder with folders A and B."
            )
        for a, b in zip(loose[::2], loose[1::2], strict=True):
            found += (
                _of_folders(Path(a), Path(b)) if Path(a).is_dir() and Path(b).is_dir() else [_given(a, b)]
            )
        return found

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """What changed in each pair, seen whole or in overlapping windows.

        Returns a list of {"changed" (share of the pixels), "mask" [h, w] of 0 and 1, "place" (see `data.rasters`, or None)}.

        Raises:
            DataError: a picture that cannot be read, or two that do not show the same place pixel by pixel.
        """
        made: list[Any] = []
        with evaluating(model) as device:
            for before, after in inputs:
                rasters = [self._rgb(one) for one in (before, after)]
                require_alike(*(header_of(one) for one in rasters))
                first, second = (processor([one.pixels]).to(device) for one in rasters)
                mask = model(pixel_values=first, after_pixels=second)["logits"].argmax(1)[0].byte().cpu().numpy()  # fmt: skip
                made.append(
                    {"changed": round(float(mask.mean()), 6), "mask": mask, "place": rasters[1].place}
                )
        return made

    def _rgb(self, one: Any) -> Any:
        bands = self.options.bands
        return read_rgb(one, None if bands is None else (bands[0], bands[1], bands[2]), self.options.stretch)

    def shown(self, one: Any, prediction: Any) -> Shown:
        from PIL import Image

        before, after = (Image.fromarray(self._rgb(each).pixels) for each in one)
        mask = prediction["mask"]
        made = {
            "before": before,
            "change": overlaid(after, mask),
            "mask": Image.fromarray(mask * np.uint8(255)),
        }
        place = prediction["place"]
        files = {} if place is None else {"mask.tif": mask_bytes(mask * np.uint8(255), place)}
        return Shown(_told(mask), picture=after, made=made, files=files)


class Pairs:
    """Rows as pictures [h, w, 3] and masks [h, w] of 0, 1 and 255; those of training are cut and changed anew in every epoch."""

    def __init__(self, split: Split, options: ChangeDetectionOptions, training: bool):
        self.split, self.options, self.training, self.epoch = split, options, training, 0
        self.rows = split.rows.with_format("numpy")

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, own = self.rows[int(index)], self.options
        bands = None if own.bands is None else (own.bands[0], own.bands[1], own.bands[2])
        before, after = (read_rgb(_plain(row[name]), bands, own.stretch) for name in ("before", "after"))
        stored, name = read_mask(_plain(row["mask"]))
        require_alike(header_of(before), header_of(after))
        require_alike(header_of(after), Header(name, stored.shape[1], stored.shape[0], after.place))
        pictures, mask = [before.pixels, after.pixels], binary(stored, own.ignored, own.threshold)
        if self.training:
            rng = np.random.default_rng((own.augment_seed, self.epoch, int(index)))
            window = cropped(rng, mask.shape[0], mask.shape[1], own.crop)
            pictures, mask = [one[window] for one in pictures], mask[window]
            if own.augment:
                drawn = GEOMETRY.draw(rng, mask.shape[0], mask.shape[1])
                pictures, mask = [drawn.picture(one) for one in pictures], drawn.numbers(mask, IGNORED)
        return {"before": pictures[0], "after": pictures[1], "mask": mask}


class PairCollator:
    """Rows of `Pairs` -> pixel_values and after_pixels [batch, 3, h, w], labels [batch, h, w] of uint8."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {
            "pixel_values": self.processor([row["before"] for row in rows]),
            "after_pixels": self.processor([row["after"] for row in rows]),
            "labels": stacked_masks([row["mask"] for row in rows], IGNORED).to(torch.uint8),
        }


def _arrays(rows: Any) -> Any:
    """Rows whose arrays come as arrays, not as lists."""
    return [{key: _plain(value) for key, value in row.items()} for row in rows.with_format("numpy")]


def _plain(value: Any) -> Any:
    """numpy's own text as text."""
    return str(value) if isinstance(value, np.str_) else value


def _told(mask: np.ndarray) -> str:
    known = mask != IGNORED
    return f"{(mask[known] == 1).mean() if known.any() else 0:.1%} changed".replace("%", " %")


def _given(before: str, after: str) -> Given:
    return Given(f"{before} {after}", (before, after))


def _of_folders(first: Path, second: Path) -> list[Given]:
    """The files of one name in two folders.

    Raises:
        DataError: there are none, or a file has no counterpart.
    """
    files = [
        {f.stem: f for f in sorted(folder.iterdir()) if f.suffix.lower() in ENDINGS}
        for folder in (first, second)
    ]
    for one, other, where in ((files[0], files[1], second), (files[1], files[0], first)):
        for stem, file in one.items():
            if stem not in other:
                raise DataError(f"{file} has no counterpart in {where}.")
    if not files[0]:
        raise DataError(f"the folder {first} holds no file that ends in {', '.join(sorted(ENDINGS))}.")
    return [_given(str(file), str(files[1][stem])) for stem, file in sorted(files[0].items())]


def _check(split: Split) -> None:
    """Pictures and mask of a row must be of one size and place; told before training.

    Raises:
        DataError: names the files.
    """
    if split.rows.features["before"].__class__.__name__ != "Value":
        return
    for row in split.rows.select_columns(["before", "after", "mask"]):
        before, after, mask = (read_header(row[name]) for name in ("before", "after", "mask"))
        require_alike(before, after)
        if (mask.width, mask.height) != (after.width, after.height):
            require_alike(after, Header(mask.name, mask.width, mask.height, after.place))
