"""What a dual encoder takes: token ids of texts and pixels of pictures, by the tokenizer and the image processor that go with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from adaptome.core.errors import DataError
from adaptome.models.open_clip import load_open_clip_processors, open_clip_source
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.composites import encoder_spec
from adaptome.tasks.models import load_config, load_image_processor, load_tokenizer, resolve


class DualProcessor:
    """Texts and pictures -> tensors.

    Args:
        tokenizer: of transformers.
        pixels: an image processor of transformers.
        length: tokens that the text encoder has places for; None where it does not say so.
        fixed: tokens that every text is filled up to (SigLIP was trained so); None for the longest of the batch.
    """

    def __init__(self, tokenizer: Any, pixels: Any, length: int | None = None, fixed: int | None = None):
        self.tokenizer, self.pixels, self.length, self.fixed = tokenizer, pixels, length, fixed

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """`ids` [texts, length] and perhaps `mask`.

        Raises:
            DataError: a text is longer than the encoder has places for.
        """
        padding = "longest" if self.fixed is None else "max_length"
        made = self.tokenizer(list(texts), padding=padding, max_length=self.fixed, return_tensors="pt")
        ids = made["input_ids"]
        if self.length is not None and ids.shape[1] > self.length:
            worst = max(texts, key=lambda text: len(self.tokenizer(text)["input_ids"]))
            raise DataError(
                f"the text {worst!r} has {ids.shape[1]} tokens, and the text encoder has places for {self.length}. Make it shorter."
            )
        return {"ids": ids, **({"mask": made["attention_mask"]} if "attention_mask" in made else {})}

    def images(self, pictures: Sequence[Any]) -> Tensor:
        """Pixels [pictures, 3, height, width] of RGB PIL pictures."""
        found: Tensor = self.pixels(list(pictures), return_tensors="pt")["pixel_values"]
        return found

    # -- what prompts with places for vectors are made of ---------------------------------------------------------------

    @property
    def pad(self) -> int:
        """The id that texts are filled up with."""
        return int(self.tokenizer.pad_token_id)

    def words(self, text: str) -> list[int]:
        """Ids of a text alone."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def around(self) -> tuple[list[int], list[int]]:
        """Ids that stand before and after every text."""
        bare, whole = self.words("a"), list(self.tokenizer("a")["input_ids"])
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), len(whole) - len(bare))
        return whole[:at], whole[at + len(bare) :]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write both, so that transformers loads them from the folder."""
        self.tokenizer.save_pretrained(folder)
        self.pixels.save_pretrained(folder)


class OpenClipProcessor(DualProcessor):
    """Those of open_clip: a tokenizer that fills texts up to its own length, and a transform of one picture."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        return {"ids": self.tokenizer(list(texts))}

    def images(self, pictures: Sequence[Any]) -> Tensor:
        return torch.stack([self.pixels(picture) for picture in pictures])

    def words(self, text: str) -> list[int]:
        row = self.tokenizer([text])[0].tolist()
        start, end = self.around()
        kept = [i for i in row if i != self.pad]
        return kept[len(start) : len(kept) - len(end)]

    def around(self) -> tuple[list[int], list[int]]:
        one, two = ([i for i in self.tokenizer([t])[0].tolist() if i != self.pad] for t in ("a", "b"))
        at = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
        return one[:at], one[at + 1 :]

    @property
    def pad(self) -> int:
        return int(getattr(getattr(self.tokenizer, "tokenizer", None), "pad_token_id", None) or 0)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Nothing is written: open_clip finds them by the model's name."""


def load_dual_processor(model: ModelSpec, size: int | None = None) -> DualProcessor:
    """The processor of a recipe's dual encoder.

    Args:
        size: side of pictures in pixels, in place of the image processor's own.

    Raises:
        RecipeError, ModelError: there is none.
    """
    source = encoder_spec(model)
    if open_clip_source(source.name) is not None:
        tokenizer, pixels = load_open_clip_processors(str(source.name))
        return OpenClipProcessor(tokenizer, pixels, fixed=getattr(tokenizer, "context_length", None))
    tokenizer = load_tokenizer(source)
    own = SimpleNamespace(name=source.name, revision=source.revision, from_config=source.from_config, tokenizer=None)  # fmt: skip
    pixels = load_image_processor(own, size)
    config = _text_config(own)
    length = getattr(config, "max_position_embeddings", None)
    siglip = str(getattr(config, "model_type", "")).startswith("siglip")
    return DualProcessor(tokenizer, pixels, length, length if siglip else None)


def _text_config(source: Any) -> Any:
    """The configuration of the text encoder; of a folder of a composite model that of its part."""
    import json
    from pathlib import Path

    from adaptome.models.base import CONFIG, is_composite

    name = source.name and resolve(source.name)
    if name and is_composite(name):
        settings = json.loads((Path(name) / CONFIG).read_text(encoding="utf-8"))["settings"]
        source = SimpleNamespace(**{**vars(source), "name": None, "from_config": settings["encoder"]["from_config"]})  # fmt: skip
    config = load_config(source)
    return getattr(config, "text_config", config)
