"""The contract of a strategy: what is trained on, what is minimised, and what is kept from one task to the next. And their registry.

A strategy has no loop. It gives rows, terms and callbacks for transformers' Trainer, looks at the model when a task begins and ends, and
says in `state` what must survive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adaptome.continual.loop import Loop, masked
from adaptome.continual.losses import class_term
from adaptome.continual.stream import Stream
from adaptome.core.parts import Parts, checked
from adaptome.objectives import Term


class StrategySettings(BaseModel):
    """A strategy's settings in a recipe; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")

    classes: Literal["seen", "present", "all"] = Field(
        default="seen",
        description="labels that the cross-entropy is over, where tasks bring labels: those of this task and earlier ones, of this task, "
        "or of all tasks, those to come as well",
    )


class Strategy:
    """What is done about forgetting. A subclass overrides what it does otherwise than plain training in a row."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[StrategySettings]] = StrategySettings
    #: whether it must be told at prediction time which task a row is of
    task_known: ClassVar[bool] = False
    #: whether it answers otherwise, and not only among fewer labels, when it is told the task
    routed: ClassVar[bool] = False
    #: whether its terms read the numbers of the batch's rows, the column `loop.ROW`
    numbered: ClassVar[bool] = False

    def __init__(self, settings: StrategySettings):
        self.settings: Any = settings

    @property
    def several(self) -> bool:
        """Whether answers come of several values of what trains, so that no one set of weights gives them."""
        return False

    def check(self, stream: Stream, training: Any) -> None:
        """Refuse a stream or a recipe's `training` section that does not go with it."""

    def rounds(self, stream: Stream) -> list[tuple[int, ...]]:
        """The tasks of every round of training."""
        return [(n,) for n in range(len(stream.parts))]

    def phases(self, loop: Loop) -> tuple[str, ...]:
        """The runs of training that a round has, in order; `begin` to `end` is done for each, with its name in `loop.phase`."""
        return ("",)

    def begin(self, loop: Loop) -> None:
        """Before a round's training."""

    def rows(self, loop: Loop) -> list[int]:
        """The rows of a round's training set; a row may come several times."""
        return loop.rows()

    def in_order(self, loop: Loop) -> bool:
        """Whether `rows` are those of all epochs, batch after batch as they are to be trained on."""
        return False

    def main(self, loop: Loop) -> Term | None:
        """The term in place of the model's own loss; None to keep it."""
        if loop.stream.kind == "domain":
            return None
        asked = {"seen": loop.seen, "present": loop.present, "all": range(loop.labels)}
        return class_term(asked[self.settings.classes])

    def added(self, loop: Loop) -> list[Term]:
        """Terms beside it."""
        return []

    def teachers(self, loop: Loop) -> dict[str, nn.Module]:
        """Models that the terms ask for."""
        return {}

    def callbacks(self, loop: Loop) -> list[Any]:
        """transformers callbacks of a round's training. One with `kept` and `restore` has a state of its own in checkpoints."""
        return []

    def end(self, loop: Loop) -> None:
        """After a round's training."""

    def place(self, loop: Loop, part: int) -> None:
        """Put the values into the model that predictions on a task start from; whoever asks puts the others back."""

    def logits(self, loop: Loop, outputs: Any, again: Again, part: int | None = None) -> Tensor:
        """What predictions are made of, for a stream of labels.

        Args:
            outputs: of the model.
            again: the model with other values of what trains, on the same batch or some of its rows.
            part: the task that the rows are of, where it is told (see `routed`).

        Returns:
            logits [rows, labels], the least there are for labels that were not seen.
        """
        logits: Tensor = masked(outputs["logits"], loop.seen)
        return logits

    def state(self) -> dict[str, Any]:
        """What is kept between tasks: dicts, lists, numbers, strings and tensors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""


class Again(Protocol):
    """The model's outputs with other values of what trains, on the batch that is being predicted."""

    def __call__(self, values: Mapping[str, Tensor], rows: Tensor | None = None) -> Any: ...


STRATEGIES: Parts[Strategy] = Parts("strategy", "adaptome.continual.strategies")


def register_strategy(name: str) -> Callable[[type[Strategy]], type[Strategy]]:
    """Register a strategy's class under `name`."""
    return STRATEGIES.register(name)


def strategies() -> dict[str, type[Strategy]]:
    """All registered strategies by name: those here and those of installed packages."""
    return STRATEGIES.all()


def get_strategy(name: str, **settings: Any) -> Strategy:
    """The strategy registered as `name`.

    Raises:
        RecipeError: no such strategy, or a setting it does not have or admit.
    """
    found = STRATEGIES.get(name)
    return found(checked(found.Settings, settings, "continual.strategy", name))
