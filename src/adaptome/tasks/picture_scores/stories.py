"""Scores of stories' frames: FID and characters by models that the recipe names, and drawn stories by rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from adaptome.core.errors import DataError
from adaptome.data.makers.pixel_stories import read_frame
from adaptome.tasks.picture_scores.base import Asked, PictureScore, ScoreSettings, register_score
from adaptome.tasks.picture_scores.embeddings import BATCH, ModelSettings, embedded, loaded


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two sets of features [n, d]: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2); Heusel et al. 2017, arXiv:1706.08500."""
    from scipy.linalg import sqrtm

    a, b = np.asarray(a, float), np.asarray(b, float)
    one, two = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = np.real(sqrtm(one @ two))
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(max(apart + np.trace(one) + np.trace(two) - 2 * np.trace(root), 0.0))


@register_score("fid")
class Fid(PictureScore):
    """fid of the pictures against the references, by a model's pooled features (an Inception-v3 in a folder, or any image model of transformers)."""

    Settings = ModelSettings
    headline = "fid"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        from transformers import AutoImageProcessor, AutoModel

        model, processor = (loaded(self.settings.model, auto) for auto in (AutoModel, AutoImageProcessor))

        def features(pixel_values: Any) -> Any:
            found = model(pixel_values=pixel_values)
            pooled = found.pooler_output if getattr(found, "pooler_output", None) is not None else found.last_hidden_state.mean(1)  # fmt: skip
            return pooled.flatten(1)

        made, held = (embedded(features, processor, which) for which in (pictures, asked.references))
        return {"fid": frechet(made, held)}


class CharacterSettings(ModelSettings):
    threshold: float = Field(default=0.5, gt=0, lt=1, description="of a character's probability")


@register_score("characters")
class Characters(PictureScore):
    """char_f1 (over characters and frames) and frame_accuracy (all characters right) by a multi-label classifier of transformers.

    Column characters: for each frame the numbers of those in it.
    """

    Settings = CharacterSettings
    headline = "char_f1"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        if "characters" not in asked.columns:
            raise DataError(
                "task.scores: characters needs a column `characters`: for each frame the numbers of those in it."
            )
        model, processor = (
            loaded(self.settings.model, auto)
            for auto in (AutoModelForImageClassification, AutoImageProcessor)
        )
        found = []
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH):
                pixels = processor(images=list(pictures[start : start + BATCH]), return_tensors="pt")[
                    "pixel_values"
                ]
                found.append((model(pixel_values=pixels).logits.sigmoid() > self.settings.threshold).numpy())
        said = np.concatenate(found)
        return character_scores(said, truths(asked.columns["characters"], said.shape[1]))


def truths(numbers: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Which characters each frame has [n, count]."""
    made = np.zeros((len(numbers), count), bool)
    for row, there in enumerate(numbers):
        made[row, list(there)] = True
    return made


def character_scores(said: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """char_f1 and frame_accuracy of [n, characters], true or false."""
    from sklearn.metrics import f1_score

    return {
        "char_f1": float(f1_score(held, said, average="micro", zero_division=0)),
        "frame_accuracy": float((said == held).all(1).mean()),
    }


@register_score("pixel-stories")
class PixelStories(PictureScore):
    """Of drawn stories, by rule: right (figure, ground and place as the story has them), and each alone. Column parts: "cross red blue green/upper left"."""

    Settings = ScoreSettings
    headline = "right"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        rows = []
        for picture, told in zip(pictures, asked.columns["parts"], strict=True):
            look, _, place = str(told).partition("/")
            figure, colour, second, ground = look.split()
            seen = read_frame(np.asarray(picture.convert("RGB")))
            if seen is None:
                rows.append((False, False, False))
                continue
            rows.append(
                (
                    (seen.figure, seen.colour, seen.second) == (figure, colour, second),
                    seen.ground == ground,
                    seen.place == place,
                )
            )
        values = np.array(rows, bool)
        alone = dict(zip(("figure", "ground", "place"), values.mean(0).tolist(), strict=True))
        return {"right": float(values.all(1).mean()), **alone}
