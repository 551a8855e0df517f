"""The contract of a score of pictures, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from adaptome.core.parts import Parts, checked


class ScoreSettings(BaseModel):
    """A score's settings in a recipe; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Asked:
    """What pictures were made of.

    Args:
        texts: one for each picture.
        columns: the data's further columns, one value for each picture.
        references: pictures of the subject, or of the data, that the made ones are held against.
    """

    texts: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    references: Sequence[Any] = ()


class PictureScore(ABC):
    """A score. A subclass has Settings and writes `score`."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[ScoreSettings]] = ScoreSettings
    #: the figure that runs are compared by
    headline: ClassVar[str] = ""

    def __init__(self, settings: ScoreSettings):
        self.settings: Any = settings

    @abstractmethod
    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        """Figures of PIL pictures."""

    def right(self, pictures: Sequence[Any], asked: Asked) -> list[bool | None]:
        """Whether each picture is what was asked for, where that can be told."""
        return [None] * len(pictures)


SCORES: Parts[PictureScore] = Parts("picture score", "adaptome.tasks.picture_scores")


def register_score(name: str) -> Callable[[type[PictureScore]], type[PictureScore]]:
    """Register a score's class under `name`."""
    return SCORES.register(name)


def get_score(told: str | Mapping[str, Any]) -> PictureScore:
    """The score that a recipe names.

    Raises:
        RecipeError: there is none, or a setting that it does not have or admit.
    """
    given = {"name": told} if isinstance(told, str) else dict(told)
    found = SCORES.get(str(given.pop("name", None)))
    return found(checked(found.Settings, given, "task.scores", found.name))


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine over all pairs of rows [n, d] and [m, d]."""
    a, b = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (np.asarray(a, float), np.asarray(b, float))
    )  # fmt: skip
    return float((a @ b.T).mean())
