"""Scores of pictures by embeddings: CLIP-I and CLIP-T, DINO, and colours where no such model is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from adaptome.core.errors import ModelError
from adaptome.tasks.picture_scores.base import Asked, PictureScore, ScoreSettings, mean_cosine, register_score

#: pictures that go through a model together
BATCH = 16


class ModelSettings(ScoreSettings):
    model: str = Field(description="hub id or folder")


class ClipSettings(ModelSettings):
    model: str = Field(default="openai/clip-vit-large-patch14", description="hub id or folder")
    token: str = Field(default="sks", description="the subject's token, which is left out of texts")


@register_score("clip")
class Clip(PictureScore):
    """clip_t, the cosine of a picture and its text; clip_i, that of pictures and references, over all pairs (Ruiz et al. 2022)."""

    Settings = ClipSettings
    headline = "clip_i"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        from transformers import AutoModel, AutoProcessor

        model, processor = (
            loaded(self.settings.model, AutoModel),
            loaded(self.settings.model, AutoProcessor),
        )
        words = [" ".join(w for w in text.split() if w != self.settings.token) for text in asked.texts]
        with torch.inference_mode():
            tokens = processor.tokenizer(list(words), padding=True, truncation=True, return_tensors="pt")
            texts = _features(model.get_text_features(**tokens))
        made = embedded(model.get_image_features, processor, pictures)
        pairs = zip(made, texts, strict=True)
        found = {"clip_t": float(np.mean([mean_cosine(p[None], t[None]) for p, t in pairs]))}
        if asked.references:
            found["clip_i"] = mean_cosine(
                made, embedded(model.get_image_features, processor, asked.references)
            )
        return found


class DinoSettings(ModelSettings):
    model: str = Field(default="facebook/dino-vits16", description="hub id or folder")


@register_score("dino")
class Dino(PictureScore):
    """dino, the cosine of the class tokens of pictures and references, over all pairs."""

    Settings = DinoSettings
    headline = "dino"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        from transformers import AutoImageProcessor, AutoModel

        model = loaded(self.settings.model, AutoModel)
        processor = loaded(self.settings.model, AutoImageProcessor)

        def tokens(pixel_values: Any) -> Any:
            return model(pixel_values=pixel_values).last_hidden_state[:, 0]

        made, held = (embedded(tokens, processor, which) for which in (pictures, asked.references))
        return {"dino": mean_cosine(made, held)}


@register_score("colours")
class Colours(PictureScore):
    """colours, the cosine of pictures' and references' colour histograms (6 x 6 x 6 bins of RGB), over all pairs.

    It needs no model; it sees which colours there are and neither shapes nor places.
    """

    headline = "colours"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        made, held = (np.stack([histogram(p) for p in which]) for which in (pictures, asked.references))
        return {"colours": mean_cosine(made, held)}


def histogram(picture: Any, bins: int = 6) -> np.ndarray:
    """Shares [bins^3] of a PIL picture's pixels by colour."""
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int) * bins // 256
    numbers = (pixels[:, 0] * bins + pixels[:, 1]) * bins + pixels[:, 2]
    return np.bincount(numbers, minlength=bins**3) / len(numbers)


def loaded(name: str, auto: Any) -> Any:
    """A model or processor of the hub.

    Raises:
        ModelError: it cannot be had.
    """
    try:
        found = auto.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"task.scores: {name} cannot be had: {error}\n  Name a local folder of it, or score by what needs no model: colours."
        ) from error
    return found.eval() if hasattr(found, "eval") else found


def embedded(embed: Any, processor: Any, pictures: Sequence[Any]) -> np.ndarray:
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pictures), BATCH):
            chosen = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
            pixels = processor(images=chosen, return_tensors="pt")["pixel_values"]
            parts.append(_features(embed(pixel_values=pixels)))
    return np.concatenate(parts)


def _features(found: Any) -> np.ndarray:
    """Of what a model gives: the tensor itself, or its pooled output."""
    tensor = found if torch.is_tensor(found) else found.pooler_output
    rows: np.ndarray = tensor.float().numpy()
    return rows
