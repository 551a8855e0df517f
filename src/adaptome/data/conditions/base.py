"""The contract of an annotator, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from adaptome.core.parts import Parts, checked


class AnnotatorSettings(BaseModel):
    """An annotator's settings in a recipe; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    instruction: str | None = Field(
        default=None, description="the words that name the condition to a gate; default: the annotator's own"
    )


class Annotator(ABC):
    """Makes the condition of a picture. A subclass has Settings and `words`, and writes `__call__`."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[AnnotatorSettings]] = AnnotatorSettings
    #: the instruction, where the recipe gives none
    words: ClassVar[str] = ""
    #: whether it reads a picture; else the data has the condition ready
    annotates: ClassVar[bool] = True

    def __init__(self, settings: AnnotatorSettings):
        self.settings: Any = settings

    @property
    def instruction(self) -> str:
        """Such as "edges to image"."""
        return str(self.settings.instruction or self.words)

    @abstractmethod
    def __call__(self, picture: Any) -> Any:
        """The condition of a PIL RGB picture, as one of its size; the same whenever the picture is."""


CONDITIONS: Parts[Annotator] = Parts("condition", "adaptome.data.conditions")


def register_condition(name: str) -> Callable[[type[Annotator]], type[Annotator]]:
    """Register an annotator's class under `name`."""
    return CONDITIONS.register(name)


def get_condition(told: str | Mapping[str, Any], key: str = "task.conditions") -> Annotator:
    """The annotator that a recipe names.

    Args:
        told: its name, or a mapping of `name` and settings.
        key: where it stands, for messages.

    Raises:
        RecipeError: there is none, or a setting that it does not have or admit.
    """
    given = {"name": told} if isinstance(told, str) else dict(told)
    found = CONDITIONS.get(str(given.pop("name", None)))
    return found(checked(found.Settings, given, key, found.name))
