"""Will it fit, and how long will it take: a recipe's training foretold for each method and precision on a device.

Memory is counted on shapes: the recipe's own trainer runs a step of its largest batch on the meta device, so weights, gradients, the
optimizer's state and what is kept for the backward are those of the real step, and no weight is read. Time is that of the step's operations
by the device's rates; on this machine a few real steps say how far from these rates it is.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptome.compare.devices import ROOM, Device, named_device, resident, this_device
from adaptome.compare.measured import Measured, measured_steps
from adaptome.compare.rows import method_of, sections_of
from adaptome.compare.shapes import Counts, Data, Memory, Shapes, size
from adaptome.compare.work import Work
from adaptome.core.errors import ModelError, RecipeError, did_you_mean
from adaptome.recipe import MethodSection, Recipe, load_recipe

#: name -> what it changes in a recipe's model and training
PRECISIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32": ({"dtype": "float32", "quantization": None}, {"bf16": False}),
    "mixed": ({"dtype": "float32", "quantization": None}, {"bf16": True}),
    "bf16": ({"dtype": "bfloat16", "quantization": None}, {"bf16": False}),
    "nf4": ({"dtype": "bfloat16", "quantization": {"scheme": "nf4"}}, {"bf16": False}),
}
Tell = Callable[[str], None]
Methods = Sequence[MethodSection]


@dataclass(frozen=True)
class Change:
    """What would make a run fit: settings to change, and what it then takes."""

    settings: dict[str, Any]
    total: int
    step_seconds: float


@dataclass(frozen=True)
class Case:
    """A method in a precision on a device.

    Attributes:
        label, precision: the row's name; the recipe's own precision is called 'recipe'.
        trainable: numbers.
        memory: of the largest batch.
        verdict: 'fits', 'tight' (less than a twelfth of the memory is left) or 'does not fit'.
        flops: operations of matrix products in an optimizer step of mean size.
        step_seconds: of an optimizer step, a mean over the data. at_best: by the device's own rates, a lower bound.
        steps: optimizer steps of the recipe; None where nothing tells. seconds: of training, without evaluating. evaluating: of that.
        measured: real steps behind the time; 0 where it is by the rates alone.
        changes: each of which would make it fit.
    """

    label: str
    precision: str
    trainable: int
    memory: Memory
    verdict: str
    flops: float
    step_seconds: float
    at_best: float
    steps: int | None
    seconds: float | None
    evaluating: float | None
    measured: int
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class Advice:
    """What was foretold, a case for each method and precision."""

    device: Device
    cases: list[Case]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"device": self.device.to_dict(), "cases": [asdict(case) for case in self.cases]}


def advise(
    recipe: Recipe | str | Path,
    precisions: Sequence[str] = (),
    device: str | None = None,
    *,
    steps: int = 3,
    length: int | None = None,
    tell: Tell | None = None,
) -> Advice:
    """Foretell the training of a recipe's methods.

    Args:
        recipe: whose `compare.methods` are taken one by one, else its `methods` together.
        precisions: of `PRECISIONS`; none for the recipe's own.
        device: of `devices.DEVICES`; None for this machine.
        steps: real ones of each case that fits, on this machine, which correct time and memory; 0 counts only.
        length: tokens of a sample, in place of reading the data.
        tell: is given a line before each case.

    Raises:
        RecipeError, DataError: the recipe or its data cannot be used, or a precision is not known.
        ModelError: the device is not known, or the model cannot be run on shapes.
        TargetError, MethodError, HostError: a method does not go with the model.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    for name in precisions:
        if name not in PRECISIONS:
            raise RecipeError(f"there is no precision {name!r}.{did_you_mean(name, PRECISIONS)} Known: {', '.join(PRECISIONS)}.")  # fmt: skip
    here = device is None
    where = this_device() if device is None else named_device(device)
    data = Data(recipe, length)
    teller = _Teller(data, where, steps if here and length is None else 0)
    cases = []
    for label, methods in rows(recipe).items():
        for name in precisions or ["recipe"]:
            if tell is not None:
                tell(f"{label}, {name}")
            cases.append(teller.case(label, name, in_precision(recipe, name), methods))
    return Advice(where, cases)


def rows(recipe: Recipe) -> dict[str, Methods]:
    """The methods of each case: those of `compare` one by one, else the recipe's together.

    Raises:
        RecipeError: there are none.
    """
    if recipe.compare is not None and recipe.compare.methods:
        found = sections_of(recipe)
        return {label: [method_of(section)] for label, section in found.items()}
    if not recipe.methods:
        raise RecipeError("there is no method to advise on: give methods, compare.methods, or --methods.")
    return {"+".join(section.name for section in recipe.methods): recipe.methods}


def in_precision(recipe: Recipe, name: str) -> Recipe:
    """The recipe with its model and training in a precision."""
    if name == "recipe":
        return recipe
    model, training = PRECISIONS[name]
    return changed(recipe, {**{f"model.{k}": v for k, v in model.items()}, **{f"training.{k}": v for k, v in training.items()}})  # fmt: skip


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings of its sections replaced: {"training.batch_size": 4}."""
    content = recipe.model_dump(exclude_unset=True)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        content[section] = {**(content.get(section) or {}), name: value}
    return Recipe.model_validate(content)


class _Teller:
    """Foretells cases on one device with one set of data."""

    def __init__(self, data: Data, device: Device, steps: int) -> None:
        self.data, self.device, self.measure = data, device, steps
        self.libraries = device.taken if device.kernels == "gpu" else resident()

    def case(self, label: str, precision: str, recipe: Recipe, methods: Methods) -> Case:
        """One case, with what would make it fit where it does not."""
        shapes = Shapes(recipe, self.data, methods)
        batches = shapes.batches()
        counts = [shapes.counted(b, self.device, self.libraries) for b in _spread(batches)]
        memory, times, factor = counts[0].memory, _Times(batches, counts, recipe, self.device), 1.0
        real = None
        if self.measure and self._verdict(memory.total) != "does not fit":
            real = measured_steps(recipe, methods, self.measure)
            factor = sum(s for _, s in real.steps) / sum(times.step(held) for held, _ in real.steps)
            memory = _corrected(memory, real, times)
        verdict = self._verdict(memory.total)
        steps, step = shapes.steps(), factor * times.mean_step()
        changes = self._changes(recipe, methods) if verdict == "does not fit" else []
        return Case(
            label, precision, counts[0].trainable, memory, verdict, times.flops(), step, times.at_best(), steps,
            None if steps is None else steps * step,
            None if steps is None else factor * times.evaluating(self.data, steps), len(real.steps) if real else 0, changes,
        )  # fmt: skip

    def _verdict(self, total: int) -> str:
        if total > self.device.memory:
            return "does not fit"
        return "tight" if total > ROOM * self.device.memory else "fits"

    def _changes(self, recipe: Recipe, methods: Methods) -> list[Change]:
        """The mildest changes of each kind that make it fit, each counted as the case was."""
        found = []
        for attempts in _attempts(recipe):
            for settings in attempts:
                try:
                    one = changed(recipe, settings)
                    shapes = Shapes(one, self.data, methods)
                    batches = shapes.batches()
                    counts = shapes.counted(batches[0], self.device, self.libraries)
                except ModelError:  # no checkpointing to switch on
                    continue
                if self._verdict(counts.memory.total) != "does not fit":
                    times = _Times(batches[:1], [counts], one, self.device)
                    found.append(Change(dict(settings), counts.memory.total, times.mean_step()))
                    break
        return found


def _attempts(recipe: Recipe) -> list[list[dict[str, Any]]]:
    """Kinds of changes, each from mild to strong: recomputing, smaller batches, fewer bits, and all of it."""
    training, model = recipe.training, recipe.model
    recompute = {} if training.gradient_checkpointing else {"training.gradient_checkpointing": True}
    halves = [2**k for k in range(1, int(math.log2(training.batch_size)) + 1) if training.batch_size % 2**k == 0]  # fmt: skip
    smaller = [
        {"training.batch_size": training.batch_size // k, "training.gradient_accumulation": training.gradient_accumulation * k}
        for k in halves
    ]  # fmt: skip
    fewer: list[dict[str, Any]] = []
    if model.quantization is None:
        half = {"model.dtype": "bfloat16"}
        fewer = [*([half] if model.dtype == "float32" else []), {**half, "model.quantization": {"scheme": "nf4"}}]  # fmt: skip
    least = smaller[-1] if smaller else {}
    kinds = [[recompute] if recompute else [], smaller, fewer]
    together = [{**recompute, **one} for one in smaller] + [{**recompute, **least, **one} for one in fewer]
    return [kind for kind in kinds if kind] + ([together] if together else [])


def _corrected(memory: Memory, real: Measured, times: _Times) -> Memory:
    """With what real steps took beyond the count, scaled from the largest batch they saw to the largest there is."""
    seen = times.total(real.largest)
    total = int(real.peak * memory.total / seen)
    return replace(memory, total=total, pieces=memory.pieces + total - memory.total)


class _Times:
    """Times (and bytes) of steps of any size, by those that were counted."""

    def __init__(self, batches: Sequence[Mapping[str, Any]], counts: Sequence[Counts], recipe: Recipe, device: Device) -> None:  # fmt: skip
        self.sizes = [size(batch) for batch in batches]
        at = [size(batch) for batch in _spread(batches)]
        self.counted = sorted(zip(at, [c.work for c in counts], strict=True), key=lambda pair: pair[0])
        self.totals = sorted(zip(at, [float(c.memory.total) for c in counts], strict=True))
        self.recipe, self.device = recipe, device
        self.updating = _update_seconds(counts[0], device)

    def _mean(self, of: Callable[[Work], float], sizes: Sequence[int] | None = None) -> float:
        known = [(at, of(work)) for at, work in self.counted]
        return statistics.fmean(_between(known, one) for one in sizes or self.sizes)

    def total(self, held: int) -> float:
        """Bytes that training takes with a batch of this size."""
        return _between(self.totals, held)

    def step(self, held: int) -> float:
        """Seconds of an optimizer step whose batches held so much."""
        parts = self.recipe.training.gradient_accumulation
        return parts * self._mean(lambda w: w.seconds(self.device), [held // parts]) + self.updating

    def mean_step(self) -> float:
        """Seconds of an optimizer step, a mean over the batches."""
        parts = self.recipe.training.gradient_accumulation
        return parts * self._mean(lambda w: w.seconds(self.device)) + self.updating

    def at_best(self) -> float:
        """The same by the device's own rates."""
        parts = self.recipe.training.gradient_accumulation
        return parts * self._mean(lambda w: w.seconds(self.device, at_best=True))

    def flops(self) -> float:
        """Of an optimizer step, a mean over the batches."""
        return self.recipe.training.gradient_accumulation * self._mean(lambda w: w.flops)

    def evaluating(self, data: Data, steps: int) -> float:
        """Seconds of the evaluations in between and at the end."""
        training, parts = self.recipe.training, self._mean(lambda w: w.forward_seconds(self.device))
        rounds = steps // training.eval_steps if training.eval_steps else math.ceil(training.epochs)
        rows = rounds * data.rows("validation") + (data.rows("test") or data.rows("validation"))
        return parts * rows / training.batch_size


def _update_seconds(counts: Counts, device: Device) -> float:
    """Of the optimizer's step: some ten passes over what trains, each started for every tensor on a CPU."""
    moved = 10 * (counts.memory.gradients + counts.memory.optimizer)
    return moved / (device.bandwidth * device.copying) + 12 * device.launch


def _between(known: Sequence[tuple[int, float]], at: int) -> float:
    """By straight lines between known points, and through the origin's side beyond them."""
    if len(known) == 1:
        return known[0][1] * at / known[0][0]
    pairs = list(itertools.pairwise(known))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _spread(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The largest batch, the middle one and the smallest, of different sizes."""
    chosen = {size(batches[i]): batches[i] for i in (0, len(batches) // 2, len(batches) - 1)}
    return list(chosen.values())
