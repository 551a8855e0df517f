"""A model whose logits are those that a strategy predicts by: while a stream is scored, and when a finished run is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptome.continual import Part, Strategy, Stream, get_strategy
from adaptome.continual.loop import Loop, as_of, subset
from adaptome.core.errors import MergeError, RecipeError, TrainingError
from adaptome.core.files import write_atomic
from adaptome.data import Splits
from adaptome.recipe import Recipe
from adaptome.tasks import Prepared, Task
from adaptome.training.adapters import restore_adapters
from adaptome.training.state import read_state
from adaptome.training.stream_data import chosen, stream_of, stream_splits

#: what comes after a round, in its folder: adapters, the strategy's state, scores
AFTER, SCORES, STRATEGY = "after", "scores.json", "strategy"
#: the stream's tasks, in the run's folder
STREAM = "stream.json"


def predict_by(loop: Loop, strategy: Strategy, part: int | None = None) -> Any:
    """From here on the model's logits are those that the strategy predicts by; returns a handle to remove.

    Args:
        part: the task of all rows, where it is told.
    """
    inside = False

    def hook(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        nonlocal inside
        if inside:
            return None
        size = len(outputs["logits"])

        def again(values: Mapping[str, Tensor], rows: Tensor | None = None) -> Any:
            return as_of(module, values, *subset(args, rows, size), **subset(kwargs, rows, size))

        inside = True
        try:
            logits = strategy.logits(loop, outputs, again, part)
        finally:
            inside = False
        made: dict[str, Any] = {**outputs, "logits": logits}
        labels = kwargs.get("labels")
        if made.get("loss") is not None and labels is not None:
            made["loss"] = nn.functional.cross_entropy(logits.float(), labels)
        return type(outputs)(**made)

    return loop.model.register_forward_hook(hook, with_kwargs=True)


# -- a finished run ----------------------------------------------------------------------------------------------------


def write_stream(folder: Path, loop: Loop, rounds: list[str]) -> None:
    """Keep what predicting needs to know of a stream."""
    parts = [{"name": part.name, "classes": list(part.classes)} for part in loop.stream.parts]
    told = {
        "kind": loop.stream.kind,
        "parts": parts,
        "rounds": [{"name": name, "parts": list(r)} for name, r in zip(rounds, loop.rounds, strict=True)],
        "names": list(loop.names),
        "heads": list(loop.heads),
    }
    write_atomic(folder / STREAM, json.dumps(told, indent=1))


def run_of(folder: Path) -> tuple[Path, str | None]:
    """The run that a folder is or is a round of, and that round's name: `runs/x/2-news` is the run as it was after the task."""
    above = folder.parent
    if not (folder / STREAM).is_file() and (folder / AFTER).is_dir() and (above / STREAM).is_file():
        return above, folder.name
    return folder, None


def strategy_of(recipe: Recipe) -> Strategy:
    """The strategy of a recipe with a stream."""
    assert recipe.continual is not None
    return get_strategy(recipe.continual.strategy.name, **recipe.continual.strategy.settings)


def _told(folder: Path) -> dict[str, Any]:
    if not (folder / STREAM).is_file():
        raise TrainingError(f"{folder} holds no finished stream: {STREAM} is missing.")
    found: dict[str, Any] = json.loads((folder / STREAM).read_text(encoding="utf-8"))
    return found


def _names(folder: Path) -> list[str]:
    return [one["name"] for one in _told(folder)["rounds"]]


def predict_by_strategy(
    folder: Path, at: str | None, recipe: Recipe, task: Task, model: nn.Module, single: bool = False
) -> None:
    """Let a run's model predict as its strategy does, from here on.

    Args:
        folder: of the run.
        at: the round after which it is taken; None for the last.
        recipe: its own.
        model: with the recipe's adapters.
        single: it is to be one set of weights.

    Raises:
        TrainingError: the run was not finished.
        MergeError: it must be one set of weights, and the strategy answers with several.
        RecipeError: the strategy must be told the task.
    """
    assert recipe.continual is not None
    told, names = _told(folder), _names(folder)
    number = len(names) - 1 if at is None else names.index(at)
    strategy = strategy_of(recipe)
    if strategy.task_known and at is None and len(names) > 1:
        raise RecipeError(
            f"continual.strategy.name={recipe.continual.strategy.name}: it must be told which task the inputs are of.\n"
            f"  Name the task's folder: {', '.join(str(folder / name) for name in names)}."
        )
    after = folder / names[number] / AFTER
    restore_adapters(model, after / "adapters")
    strategy.restore(read_state(after, STRATEGY))
    if single and strategy.several:
        raise MergeError(
            f"the run in {folder} answers with several sets of adapters (continual.strategy.name={strategy.name}), which no one set of weights "
            "stands for.\n  Use the run itself (`adaptome predict`), or learn the stream with a strategy of one, such as replay."
        )
    parts = tuple(Part(one["name"], (), (), tuple(one["classes"])) for one in told["parts"])
    rounds = [tuple(one["parts"]) for one in told["rounds"]]
    loop = Loop(
        model, Stream(parts, told["kind"]), tuple(told["names"]), tuple(told["heads"]), len(task.labels or ()),
        recipe.training.seed, rounds, number,
    )  # fmt: skip
    part = rounds[number][-1]
    strategy.place(loop, part)
    if loop.stream.kind == "class":
        predict_by(loop, strategy, part if strategy.task_known else None)


def scored_rows(folder: Path, recipe: Recipe, task: Task, processor: Any, split: str | None) -> tuple[Splits, Prepared, str]:  # fmt: skip
    """The data of a stream's run, with those rows of a split that the run was to have learned; and that split's name.

    Args:
        folder: of the run, or of one of its rounds, after which only the tasks up to it count; of a strategy that must be told the
            task, that round's alone.
        split: None for the one that the run was scored on.
    """
    above, at = run_of(folder)
    if split is not None and split != "train":
        evaluation = recipe.evaluation.model_copy(update={"split": split})
        recipe = recipe.model_copy(update={"evaluation": evaluation})
    splits, scored, cut = stream_splits(recipe, task)
    data = task.prepare(splits, processor)
    stream = stream_of(recipe, task, splits, data, scored, cut)
    rounds = [tuple(one["parts"]) for one in _told(above)["rounds"]]
    number = len(rounds) - 1 if at is None else _names(above).index(at)
    strategy = strategy_of(recipe)
    parts = rounds[number] if strategy.task_known else [n for r in rounds[: number + 1] for n in r]
    name = split or scored
    rows = sorted({r for n in parts for r in (stream.parts[n].train if name == "train" else stream.parts[n].test)})  # fmt: skip
    made = Splits({**splits, name: splits[name].select(rows)}, splits.notes)
    return made, replace(data, splits={**data.splits, name: chosen(data, name, rows)}), name
