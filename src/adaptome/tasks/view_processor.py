"""What makes a model's inputs of pictures that it learns from by views: size, patches and normalisation, as the encoder has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptome.core.errors import RecipeError
from adaptome.data.views import resized
from adaptome.models import is_composite
from adaptome.models.base import read_configuration
from adaptome.models.spectral import KEY
from adaptome.tasks.bands import BandOptions, BandProcessor, read_bands
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.composites import encoder_spec
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.models import load_config, load_image_processor
from adaptome.tasks.pixels import IMAGENET_MEAN, IMAGENET_STD


class ViewProcessor:
    """Pictures as floats, and as the encoder takes them.

    Args:
        side: of what the encoder sees, in pixels. patch: of a patch. groups: of bands that have patches of their own.
        images: an image processor of transformers, for RGB; None for bands.
        bands: how these are normalised.
    """

    def __init__(self, side: int, patch: int, groups: int, images: Any, bands: BandOptions | None):
        self.side, self.patch, self.groups, self.images, self.bands = side, patch, groups, images, bands
        self.mean: Any = bands.mean if bands else getattr(images, "image_mean", None) or IMAGENET_MEAN
        self.std: Any = bands.std if bands else getattr(images, "image_std", None) or IMAGENET_STD

    def read(self, one: Any) -> Tensor:
        """A picture [C, H, W] of float: RGB from 0 to 1, or bands in their own numbers."""
        if self.bands is not None:
            return read_bands(one, self.bands.take, len(self.bands.mean))
        pixels = np.asarray(to_rgb(one), np.float32) / 255
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels [..., C, h, w], each band less its mean and by its spread."""
        mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def __call__(self, pictures: Any, return_tensors: str = "pt") -> dict[str, Tensor]:
        """Whole pictures at the encoder's size: pixel_values [batch, C, side, side]."""
        return {
            "pixel_values": self.normalised(
                torch.stack([resized(self.read(one), self.side) for one in pictures])
            )
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write what other tasks load: the image processor at this size, or the bands' numbers."""
        if self.bands is not None:
            BandProcessor(self.bands, self.side).save_pretrained(folder)
            return
        self.images.save_pretrained(folder)


def load_view_processor(model: ModelSpec, size: int | None, bands: BandOptions | None) -> ViewProcessor:
    """The processor that goes with the encoder of a model section.

    Args:
        size: side in pixels; None for the encoder's own.

    Raises:
        RecipeError: the encoder has no patches, or takes bands that `task.bands` does not describe.
    """
    source = encoder_spec(model)
    if source.name is not None and is_composite(source.name):
        _, settings = read_configuration(Path(source.name))
        part = dict(settings["encoder"])
        source = type(source)(**{**vars(source), "name": None, "from_config": part["from_config"]})
    config = load_config(source)
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        raise RecipeError(
            f"{config.model_type} has no patches of one size that could be hidden. Take a ViT, DINOv2 or ViT-MAE."
        )
    own: Any = getattr(model, "settings", {}).get("bands") or {}
    groups = own.get("groups") or getattr(config, KEY, None)
    patch, side = own.get("patch_size") or patch, size or own.get("image_size") or int(config.image_size)
    if groups is not None and bands is None:
        raise RecipeError(
            "the model takes groups of bands: give task.bands={mean: [...], std: [...]}, a number for each band."
        )
    images = None if bands is not None else load_image_processor(source, side)
    return ViewProcessor(side, patch, len(groups or [0]), images, bands)
