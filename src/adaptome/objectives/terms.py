"""The terms of a loss, weighed, scheduled and summed; and what they look at, gathered while the model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from adaptome.core.errors import RecipeError, TrainingError
from adaptome.core.model import disabled
from adaptome.core.targets import resolve
from adaptome.objectives.base import Needs, Objective, Seen, Watch, all_rows, get_objective

#: the module of a model under which what its terms train stands
PARTS = "objective_parts"
#: prefix of the columns that are a second view of the examples
SECOND = "second_"


class Schedule(BaseModel):
    """A weight's course over training: `first` until `begin`, `last` from `end` on, and the shape between them.

    Written in a word: constant, linear-up, linear-down, cosine-up, cosine-down; `step` jumps at `begin`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: Literal["constant", "linear", "cosine", "step"] = "constant"
    first: float = Field(default=1.0, description="factor on the weight before `begin`")
    last: float = Field(default=1.0, description="factor from `end` on")
    begin: float = Field(default=0.0, ge=0, le=1, description="share of training")
    end: float = Field(default=1.0, ge=0, le=1, description="share of training")

    @model_validator(mode="before")
    @classmethod
    def _in_a_word(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        shape, _, way = given.partition("-")
        return {"shape": shape} | {"up": {"first": 0.0}, "down": {"last": 0.0}, "": {}}.get(
            way, {"shape": given}
        )

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if self.begin > self.end:
            raise ValueError(f"begin={self.begin} is after end={self.end}")
        return self

    def factor(self, progress: float) -> float:
        """The factor at a share of training in [0, 1]."""
        if self.shape == "constant":
            return self.first
        if self.shape == "step" or self.begin == self.end:
            return self.last if progress >= self.begin else self.first
        t = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        t = t if self.shape == "linear" else (1 - math.cos(math.pi * t)) / 2
        return self.first + (self.last - self.first) * t


@dataclass(frozen=True)
class Term:
    """An objective with its weight.

    Args:
        label: its name in logs and reports; '' for the objective's.
    """

    objective: Objective
    weight: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.objective.name


class Section(Protocol):
    """What `terms_of` reads of a recipe's section."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def schedule(self) -> Any: ...
    @property
    def label(self) -> str | None: ...
    @property
    def settings(self) -> dict[str, Any]: ...


def terms_of(sections: Sequence[Section]) -> list[Term]:
    """The terms that the sections of a recipe's `objective` describe; empty where the model's own loss is all.

    Raises:
        RecipeError: no such objective, a setting or schedule that is not valid.
    """
    made = []
    for number, section in enumerate(sections):
        try:
            schedule = Schedule.model_validate(section.schedule)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RecipeError(
                f"objective.{number}.schedule={section.schedule!r}: {said[0].lower()}{said[1:]}.\n"
                "  Write constant, linear-up, linear-down, cosine-up, cosine-down, or {shape, first, last, begin, end}."
            ) from error
        try:
            objective = get_objective(section.name, **section.settings)
        except RecipeError as error:
            raise RecipeError(f"objective.{number}: {error}") from error
        made.append(Term(objective, section.weight, schedule, section.label or ""))
    plain = (
        len(made) == 1
        and made[0].name == "model"
        and made[0].weight == 1.0
        and made[0].schedule == Schedule()
    )
    return [] if plain else made


class Terms:
    """The terms of one model's loss.

    Args:
        model: with its adapters, and with what the terms train (see `install`).
        terms: at least one.
        teachers: models by the name that a term asks for; 'base' needs none.

    Raises:
        RecipeError: two terms of one name, or a teacher that is not there.
    """

    def __init__(
        self, model: nn.Module, terms: Sequence[Term], teachers: Mapping[str, nn.Module] | None = None
    ):
        self.model, self.terms, self.teachers = model, list(terms), dict(teachers or {})
        #: what the terms measured in the last evaluation of the loss
        self.measured: dict[str, Tensor] = {}
        names = [term.name for term in self.terms]
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"objective: two terms are called {name!r}. Give one a label.")
        self.needs: list[Needs] = [term.objective.needs() for term in self.terms]
        for name in self._teacher_names():
            if name != "base" and name not in self.teachers:
                raise RecipeError(f"objective: the teacher {name!r} was not given.")
        self._open = self._muted = False
        # the same mappings in every step: a compiled model writes to those it was compiled with
        self._watched: dict[int, dict[str, Tensor]] = {
            n: {} for n, need in enumerate(self.needs) if need.watch
        }
        self._hooks: list[Any] = []
        for term in self.terms:
            term.objective.begin(model, self._parts().get(term.name))

    # -- what the terms train --------------------------------------------------------------------------------------

    @staticmethod
    def install(model: nn.Module, terms: Sequence[Term]) -> list[str]:
        """Put what the terms train on the model; before adapters are attached. Returns what to name in `ad.attach(train=...)`."""
        made = {term.name: part for term in terms if (part := term.objective.parts(model)) is not None}
        if made:
            like = next(model.parameters())
            model.add_module(PARTS, nn.ModuleDict(made).to(like.device))
        return [f"{PARTS}.{name}" for name, part in made.items() if next(part.parameters(), None) is not None]

    def trains(self) -> bool:
        """Whether the terms train something of their own."""
        parts = getattr(self.model, PARTS, None)
        return parts is not None and any(p.requires_grad for p in parts.parameters())

    def _parts(self) -> dict[str, nn.Module]:
        return dict(getattr(self.model, PARTS, nn.ModuleDict()).items())

    def stepped(self, progress: float) -> None:
        """Tell the terms of a step of the optimizer."""
        for term in self.terms:
            term.objective.stepped(self.model, self._parts().get(term.name), progress)

    def end(self) -> None:
        """Tell the terms that training is over."""
        for term in self.terms:
            term.objective.end(self.model, self._parts().get(term.name))

    def state(self) -> dict[str, Tensor]:
        """Buffers of the terms' parts, for checkpoints; their parameters are the adapter's."""
        parts = getattr(self.model, PARTS, None)
        return {} if parts is None else dict(parts.named_buffers())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        with torch.no_grad():
            for name, buffer in self.state().items():
                buffer.copy_(state[name])

    # -- the forward -----------------------------------------------------------------------------------------------

    def asks(self) -> dict[str, Any]:
        """Arguments for the model's forward."""
        return {"output_hidden_states": True} if any(need.hidden_states for need in self.needs) else {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Gather what the terms look at from the forwards of the block; the backward belongs into it too. Nests."""
        if self._hooks:
            yield
            return
        self._open, self._muted = True, False
        for number, need in enumerate(self.needs):
            if need.watch is not None:
                self._hooks += self._hooked(number, need.watch)
        try:
            yield
        finally:
            for hook in self._hooks:
                hook.remove()
            self._hooks, self._open = [], False
            for seen in self._watched.values():
                seen.clear()

    def _hooked(self, number: int, watch: Watch) -> list[Any]:
        targets = watch.targets(self.model) if callable(watch.targets) else watch.targets
        found = {match.path: match.module for match in resolve(self.model, targets)}

        def put(path: str) -> Callable[..., None]:
            def seen(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
                if self._muted:
                    return
                value = made if watch.of == "output" else (args or tuple(kwargs.values()))[0]
                value = value[0] if isinstance(value, tuple) else value
                # in a recomputation too, which must save what the forward saved
                value = value if watch.reduce is None else watch.reduce(value)
                if self._open:
                    self._watched[number][path] = value

            return seen

        return [m.register_forward_hook(put(path), with_kwargs=True) for path, m in found.items()]

    # -- the loss --------------------------------------------------------------------------------------------------

    def loss(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        progress: float = 0.0,
        items: Tensor | int | None = None,
        share: float = 1.0,
        own: Tensor | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighed sum, and each term's own value by name, without gradient.

        Args:
            outputs: of the model on the batch, run inside `watching()`.
            batch: all its columns.
            progress: the share of training done, for the schedules.
            items: see `Seen`.
            share: factor on the terms that are means, where the caller does not divide the sum by the accumulated batches.
            own: the model's own loss, for the term `model`; None to take it from the outputs.
            forward: runs the model on a view or a teacher's input; None for the model itself, on the batch without labels.
        """
        self._open = False
        second = self._second(batch, forward) if any(need.second for need in self.needs) else None
        teachers = {name: self._taught(name, batch, forward) for name in self._teacher_names()}
        parts = self._parts()
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for number, (term, need) in enumerate(zip(self.terms, self.needs, strict=True)):
            seen = Seen(
                self.model,
                parts.get(term.name),
                self._seen(number, term) if need.watch else {},
                second if need.second else None,
                teachers.get(need.teacher) if need.teacher else None,
                items,
                all_rows if self.model.training else lambda rows: rows,
                progress,
            )
            given = {"loss": own} if own is not None and term.objective.name == "model" else outputs
            value = term.objective.value(given, batch, seen)
            values[term.name] = value.detach()
            if not self.model.training and not torch.is_grad_enabled():
                self.measured.update(term.objective.measures(batch, seen))
            weight = term.weight * term.schedule.factor(progress)
            weighed = value * (weight if term.objective.per_item else weight * share)
            total = weighed if total is None else total + weighed
        assert total is not None
        return total, values

    def _seen(self, number: int, term: Term) -> dict[str, Tensor]:
        found = self._watched.get(number, {})
        if not found:
            raise TrainingError(
                f"objective {term.name!r} looks at {self.needs[number].watch} and none of them ran.\n"
                "  Run the model inside `terms.watching()`, once for each loss."
            )
        trains = self.model.training and torch.is_grad_enabled()
        if trains and not any(value.requires_grad for value in found.values()):
            raise TrainingError(
                f"objective {term.name!r}: no gradient reaches what it looks at.\n"
                "  Either nothing before it trains, or gradient checkpointing hides it: use use_reentrant=False."
            )
        return found

    def _teacher_names(self) -> list[str]:
        return list(dict.fromkeys(need.teacher for need in self.needs if need.teacher))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def _second(self, batch: Mapping[str, Any], forward: Callable[..., Any] | None) -> Any:
        view = {k.removeprefix(SECOND): v for k, v in batch.items() if k.startswith(SECOND)}
        with self._aside():
            return self._run(self.model, view or batch, forward)

    def _taught(self, name: str, batch: Mapping[str, Any], forward: Callable[..., Any] | None) -> Any:
        """A teacher's outputs: in evaluation mode, without gradient."""
        with self._aside(), torch.no_grad():
            if name != "base":
                return self._run(self.teachers[name], batch, forward)
            modes = [(module, module.training) for module in self.model.modules()]
            self.model.eval()
            try:
                with disabled(self.model):
                    return self._run(self.model, batch, forward)
            finally:
                for module, mode in modes:
                    module.training = mode

    def _run(self, model: nn.Module, inputs: Mapping[str, Any], forward: Callable[..., Any] | None) -> Any:
        if forward is not None:
            return forward(model, inputs)
        given = {k: v for k, v in inputs.items() if k != "labels" and not k.startswith(SECOND)}
        return model(**given, **self.asks())
