"""The contract of a generator, and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from adaptome.core.parts import Parts, checked


class GeneratorSettings(BaseModel):
    """A generator's settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Generator(ABC):
    """Something that writes texts of a class."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[GeneratorSettings]] = GeneratorSettings

    def __init__(self, settings: Any):
        self.settings = settings

    @abstractmethod
    def texts(
        self, label: str, description: str, demonstrations: Sequence[str], count: int, seed: int
    ) -> list[str]:
        """About `count` texts of a class, some perhaps alike or not of it: whoever asks must sift them.

        Args:
            demonstrations: the real examples of the class.

        Raises:
            BlackBoxError: a model does not answer. DataError: a file cannot be read.
        """


GENERATORS: Parts[Generator] = Parts("generator", "adaptome.blackbox.generators")


def get_generator(name: str, **settings: Any) -> Generator:
    """The generator registered as `name`.

    Raises:
        RecipeError: no such one, or a setting that it does not have or admit.
    """
    kind = GENERATORS.get(name)
    return kind(checked(kind.Settings, settings, "augmentation.generator", name))
