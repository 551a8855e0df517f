"""What CLIP reads: pixels of pictures and ids of words, together in one processor that is saved with the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptome.models.context_words import prompt_ids
from adaptome.tasks.models import load_config, load_image_processor, load_tokenizer


class ClipProcessor:
    """An image processor's numbers and a tokenizer.

    Args:
        images: CLIP's image processor, of which size, mean and spread are taken. tokenizer: of its text encoder.
        longest: positions of the text encoder.
    """

    def __init__(self, images: Any, tokenizer: Any, longest: int):
        self.images, self.tokenizer, self.longest = images, tokenizer, longest
        size = dict(images.size)
        crop = dict(getattr(images, "crop_size", None) or {})
        self.size = int(crop.get("height") or size.get("height") or size["shortest_edge"])
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (images.image_mean, images.image_std))  # fmt: skip

    def pixels(self, pictures: np.ndarray) -> Tensor:
        """Pixels [n, 3, h, w] of pictures [n, h, w, 3] of uint8 at their own size."""
        values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        return (values - self.mean) / self.std

    def ids(self, texts: Sequence[str], context: int = 0) -> Tensor:
        """Ids [texts, length], with places kept free for trained context."""
        return prompt_ids(self.tokenizer, texts, context, self.longest)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write both beside the model."""
        self.images.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_clip_processor(model: Any, size: int | None = None) -> ClipProcessor:
    """The processor of a CLIP.

    Args:
        model: a model section, or see `composites.encoder_spec`.
        size: side of its pictures, in place of its own.
    """
    from types import SimpleNamespace

    config = load_config(model)
    # a tokenizer of another name does not make pictures
    source = SimpleNamespace(name=model.name, revision=model.revision, from_config=model.from_config, tokenizer=None)  # fmt: skip
    side = size or (int(config.vision_config.image_size) if model.name is None else None)
    images: Any = load_image_processor(source, side)
    if size and dict(getattr(images, "crop_size", None) or {}):
        images.crop_size = {"height": size, "width": size}
    return ClipProcessor(images, load_tokenizer(model), int(config.text_config.max_position_embeddings))
