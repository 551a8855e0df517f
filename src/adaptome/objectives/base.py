"""The contract of an objective: one term of what training minimises, and their registry.

A term is a function of the model's outputs and the batch. What else it looks at it asks for in `needs`, and finds it in the
`Seen` that it is given: hidden states, what chosen modules gave, a second view of the examples, a teacher's outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from adaptome.core.errors import TrainingError, nearest
from adaptome.core.parts import Parts, checked


class TermSettings(BaseModel):
    """An objective's settings in a recipe; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Watch:
    """Modules whose input or output a term looks at in every forward.

    Args:
        targets: roles or patterns, as methods take them; or what names them for a model.
        of: their input or their output.
        reduce: applied where the module runs, so that only its result is kept; None keeps the tensor.
    """

    targets: str | Sequence[str] | Callable[[nn.Module], Sequence[str]]
    of: Literal["input", "output"] = "output"
    reduce: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Needs:
    """What a term asks for.

    Args:
        hidden_states: of every layer, in `outputs.hidden_states`.
        watch: modules to look at.
        second: a second forward: of the batch's columns `second_*`, else of the same inputs, whose dropout is drawn again.
        teacher: a frozen model's outputs on the batch: 'base' for this one without its adapters, or a model's name.
    """

    hidden_states: bool = False
    watch: Watch | None = None
    second: bool = False
    teacher: str | None = None


@dataclass
class Seen:
    """What a term may look at, beside outputs and batch.

    Args:
        model: the model, with its adapters.
        parts: what the term itself trains (see `Objective.parts`).
        watched: path of a module -> its tensor, or what `reduce` made of it; a module that ran twice has its last.
        second, teacher: the outputs that were asked for.
        items: targets in the whole accumulated batch, where the loss is summed and divided by it; None for a mean.
        gather: rows of this process -> rows of all processes in the same order everywhere, gradients flowing back.
        progress: the share of training that is done.
    """

    model: nn.Module
    parts: nn.Module | None = None
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    second: Any = None
    teacher: Any = None
    items: Tensor | int | None = None
    gather: Callable[[Tensor], Tensor] = lambda rows: rows
    progress: float = 0.0


class Objective(ABC):
    """One term. A subclass has Settings and writes `value`; its file starts with the equation and its source."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[TermSettings]] = TermSettings
    #: whether `value` divides by `Seen.items` where it is given; else it is a mean over the batch
    per_item: ClassVar[bool] = False

    def __init__(self, settings: TermSettings):
        self.settings: Any = settings

    def needs(self) -> Needs:
        """What it looks at beside outputs and batch."""
        return Needs()

    def parts(self, model: nn.Module) -> nn.Module | None:
        """What the term itself trains (a temperature, a projection), made anew; its buffers are kept in checkpoints. None for nothing."""
        return None

    def begin(self, model: nn.Module, parts: nn.Module | None) -> None:  # noqa: B027 -- most terms keep nothing
        """Told once, when the adapters are on the model: what follows the trained tensors makes its copies of them here."""

    def stepped(self, model: nn.Module, parts: nn.Module | None, progress: float) -> None:  # noqa: B027 -- most terms keep nothing
        """Told after every step of the optimizer, with the share of training that is done then."""

    @property
    def replaces(self) -> bool:
        """Whether `end` puts other tensors in the place of those that were trained last."""
        return False

    def end(self, model: nn.Module, parts: nn.Module | None) -> None:  # noqa: B027 -- most terms keep nothing
        """Told when training is over, before anything is evaluated or saved."""

    @abstractmethod
    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        """The term, a scalar, without its weight."""

    def measures(self, batch: Mapping[str, Any], seen: Seen) -> dict[str, Tensor]:
        """What else evaluation is to tell of it, by name: means over the batch's examples, of what has no gradient perhaps."""
        return {}


OBJECTIVES: Parts[Objective] = Parts("objective", "adaptome.objectives")


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Register an objective's class under `name`."""
    return OBJECTIVES.register(name)


def objectives() -> dict[str, type[Objective]]:
    """All registered objectives by name: those here and those of installed packages."""
    return OBJECTIVES.all()


def get_objective(name: str, **settings: Any) -> Objective:
    """The objective registered as `name`.

    Raises:
        RecipeError: no such objective, or a setting it does not have or admit.
    """
    found = OBJECTIVES.get(name)
    return found(checked(found.Settings, settings, "objective", name))


# -- what terms read of outputs and batches ----------------------------------------------------------------------------


def output(outputs: Any, name: str, asking: str) -> Any:
    """A field of the model's outputs.

    Raises:
        TrainingError: the outputs have none of that name; names those there are.
    """
    found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    if found is None:
        there = list(outputs) if isinstance(outputs, Mapping) else [k for k in vars(outputs) if k[0] != "_"]
        close = nearest(name, there, 1)
        raise TrainingError(
            f"{asking} reads the model's output {name!r}, and there is none. Outputs: {', '.join(there)}."
            + (f"\n  Perhaps {close[0]!r} is meant." if close else "")
        )
    return found


def column(batch: Mapping[str, Any], name: str, asking: str) -> Any:
    """A column of the batch.

    Raises:
        TrainingError: the batch has none of that name; names those there are.
    """
    if batch.get(name) is None:
        raise TrainingError(
            f"{asking} reads the batch's column {name!r}, and there is none. Columns: {', '.join(batch)}."
        )
    return batch[name]


def features(
    outputs: Any, batch: Mapping[str, Any], name: str = "auto", asking: str = "the objective"
) -> Tensor:
    """One vector for each example [batch, width].

    Args:
        name: a field of the outputs; 'auto' for `embeddings`, `pooler_output`, or the mean of the last hidden states over the
            tokens that the attention mask keeps; `hidden_states` for the last of these.
    """
    if name != "auto":
        found = output(outputs, name, asking)
        return pooled(found[-1] if name == "hidden_states" else found, batch)
    for field_name in ("embeddings", "pooler_output"):
        found = (
            outputs.get(field_name) if isinstance(outputs, Mapping) else getattr(outputs, field_name, None)
        )
        if found is not None:
            return pooled(found, batch)
    return pooled(output(outputs, "last_hidden_state", asking), batch)


def pooled(states: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """[batch, ..., width] -> [batch, width]: the mean over tokens, those of the attention mask where it fits."""
    if states.dim() == 2:
        return states
    states, mask = states.flatten(1, -2), batch.get("attention_mask")
    if mask is None or mask.shape != states.shape[:2]:
        return states.mean(1)
    kept = mask.to(states.dtype).unsqueeze(-1)
    return (states * kept).sum(1) / kept.sum(1).clamp(min=1)


def all_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in the same order everywhere, with gradients; the rows themselves where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    if torch.distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _AllRows.apply(rows)
    return gathered


class _AllRows(torch.autograd.Function):
    """Every process computes the whole loss, so a row's gradient is the sum over processes; DDP then takes the mean of these."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        made = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(made, rows.contiguous())
        return torch.cat(made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous()
        torch.distributed.all_reduce(total)
        first = ctx.count * torch.distributed.get_rank()
        return total[first : first + ctx.count]
