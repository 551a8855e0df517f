"""The contract of a black box, and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from adaptome.core.parts import Parts, checked


class BlackBoxSettings(BaseModel):
    """A black box's settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    batch_size: int = Field(default=16, ge=1, description="texts asked, and written to the cache, at once")


class BlackBox(ABC):
    """Something that can be asked about texts, and nothing else."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[BlackBoxSettings]] = BlackBoxSettings
    #: settings that say how it is asked, and change no answer
    aside: ClassVar[tuple[str, ...]] = ("batch_size",)

    def __init__(self, settings: Any):
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        """All that its answers depend on beside the text, as JSON values: the cache is kept by it."""
        told = self.settings.model_dump(mode="json", exclude=set(self.aside))
        return {"name": self.name, **told}

    @abstractmethod
    def states(self, texts: Sequence[str]) -> list[Tensor]:
        """What it makes of each text, [tokens, width] or [1, width], without gradient.

        Raises:
            BlackBoxError: it does not answer, or not as it should.
        """


class Calling(BlackBox):
    """A function as a black box.

    Args:
        function: texts -> an array [tokens, width] or [width] of each.
        identity: a name for what it does; another one where its answers change.
        batch_size: texts that it is given at once.
    """

    def __init__(
        self, function: Callable[[Sequence[str]], Sequence[Any]], identity: str, batch_size: int = 16
    ):
        super().__init__(BlackBoxSettings(batch_size=batch_size))
        self.function, self.called = function, identity

    def identity(self) -> dict[str, Any]:
        return {"name": "callable", "called": self.called}

    def states(self, texts: Sequence[str]) -> list[Tensor]:
        made = [torch.as_tensor(one).detach() for one in self.function(list(texts))]
        return [one[None] if one.dim() == 1 else one for one in made]


BLACK_BOXES: Parts[BlackBox] = Parts("black box", "adaptome.blackbox")


def get_black_box(name: str, **settings: Any) -> BlackBox:
    """The black box registered as `name`.

    Raises:
        RecipeError: no such one, or a setting that it does not have or admit.
    """
    kind = BLACK_BOXES.get(name)
    return kind(checked(kind.Settings, settings, "task.black_box", name))
