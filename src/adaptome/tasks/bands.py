"""Pictures of any number of bands as a model's inputs: stacked, brought to a size and normalised band by band."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from adaptome.core.errors import DataError
from adaptome.data.rasters import read_raster
from adaptome.data.views import resized
from adaptome.tasks.pixels import FILE


class BandOptions(BaseModel):
    """Which bands of a raster are taken, and how they are normalised."""

    model_config = ConfigDict(extra="forbid")

    mean: list[float] = Field(
        min_length=1, description="of each band that is taken, in the raster's own numbers"
    )
    std: list[float] = Field(min_length=1, description="their spreads")
    take: list[int] | None = Field(default=None, description="numbers, from 1, of the bands; default: all")

    @model_validator(mode="after")
    def _as_many(self) -> BandOptions:
        if not len(self.mean) == len(self.std) == len(self.take or self.mean):
            raise ValueError("mean, std and take have a number for each band")
        return self


def read_bands(one: Any, take: Sequence[int] | None, count: int) -> Tensor:
    """A raster [bands, height, width] of float32 of a file, an array [height, width, bands] or a list of these, whose bands are stacked.

    Raises:
        DataError: it cannot be read, a band is not there or no number, pictures of one list differ in size, or there are other than `count`.
    """
    several = isinstance(one, (list, tuple)) and (
        not one or not np.isscalar(one[0]) or isinstance(one[0], str)
    )
    parts = [read_raster(part) for part in (one if several else [one])]
    sizes = {part.pixels.shape[:2] for part in parts}
    if len(sizes) > 1:
        side = max(max(size) for size in sizes)
        stacked = torch.cat([resized(_floats(part), side) for part in parts])
    else:
        stacked = torch.cat([_floats(part) for part in parts])
    name = parts[0].name
    if take is not None:
        if max(take) > len(stacked) or min(take) < 1:
            raise DataError(
                f"{name} has {len(stacked)} bands; task.bands.take={list(take)} names one that is not there."
            )
        stacked = stacked[[number - 1 for number in take]]
    if len(stacked) != count:
        raise DataError(
            f"{name} has {len(stacked)} bands, and task.bands gives mean and std of {count}. Name those to take: task.bands.take."
        )
    return stacked


def _floats(raster: Any) -> Tensor:
    values = np.nan_to_num(np.asarray(raster.pixels, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))


class BandProcessor:
    """Rasters -> pixels [batch, bands, size, size]: each band less its mean, by its spread."""

    def __init__(self, options: BandOptions, size: int):
        self.options, self.size = options, size

    def __call__(self, pictures: Sequence[Any], return_tensors: str = "pt") -> dict[str, Tensor]:
        own = self.options
        found = [resized(read_bands(one, own.take, len(own.mean)), self.size) for one in pictures]
        return {"pixel_values": self.normalised(torch.stack(found))}

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels [..., bands, h, w]."""
        mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.options.mean, self.options.std))
        return (pixels - mean) / std

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write mean, spread and size as image processors do."""
        told = {"image_mean": self.options.mean, "image_std": self.options.std, "size": {"height": self.size, "width": self.size}}  # fmt: skip
        (Path(folder) / FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")
