"""Pictures as the inputs of dense tasks: normalised, at their own size."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptome.tasks.models import resolve

#: what most encoders were trained with, in place of what a checkpoint's own says
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILE = "preprocessor_config.json"


class PixelProcessor:
    """Pictures [h, w, 3] of uint8 -> pixels [batch, 3, h, w]: no resizing, for masks lie pixel by pixel."""

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures of several sizes have their last rows and columns repeated up to the largest."""
        height, width = (max(one.shape[i] for one in pictures) for i in (0, 1))
        made = []
        for one in pictures:
            pixels = torch.tensor(np.ascontiguousarray(one)).permute(2, 0, 1).float() / 255
            made.append(F.pad(pixels[None], (0, width - one.shape[1], 0, height - one.shape[0]), "replicate"))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (torch.cat(made) - mean) / std

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write mean and spread as image processors do."""
        told = {"image_mean": list(self.mean), "image_std": list(self.std), "do_resize": False}
        (Path(folder) / FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")


def load_pixel_processor(source: Any) -> PixelProcessor:
    """The processor with an encoder's own mean and spread; ImageNet's where it has no image processor, or is built from a configuration.

    Args:
        source: a model section, or see `composites.encoder_spec`.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    name = source.tokenizer or source.name
    if name is None:
        return PixelProcessor()
    revision = None if source.tokenizer else source.revision
    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(resolve(name), revision=revision)
    except (OSError, ValueError):  # the model itself tells when nothing can be had under this name
        return PixelProcessor()
    return PixelProcessor(told.get("image_mean") or IMAGENET_MEAN, told.get("image_std") or IMAGENET_STD)


def stacked_masks(masks: Sequence[np.ndarray], outside: float) -> Tensor:
    """Masks or measures [h, w(, n)] of several sizes as one tensor [batch, h, w(, n)]; `outside` where they end."""
    height, width = (max(one.shape[i] for one in masks) for i in (0, 1))
    made = []
    for one in masks:
        shape = [(0, height - one.shape[0]), (0, width - one.shape[1]), *[(0, 0)] * (one.ndim - 2)]
        made.append(np.pad(one, shape, constant_values=outside))
    return torch.from_numpy(np.stack(made))
