"""A recipe's stream carried out: a round of training for each task, every round a run of transformers' Trainer, and the matrix of scores.

<output.folder>/
  1-<task>/after/     adapters, the strategy's state and the scores after the task; written at once, when it is finished
  2-<task>/checkpoints/   of the task that is being trained
  adapter/, recipe.yaml, task.json    as of any run (see `training.folder`)
  report.html         matrices as heat maps, and curves
  metrics.json        matrices and measures; written last

Killed anywhere, the same recipe with `training.resume=true` goes on: finished tasks are read back, the one that was cut off goes on from its
last checkpoint, and what comes out is the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import adaptome as ad
from adaptome.continual import Strategy, measures
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.core.files import remove_folder, write_atomic
from adaptome.recipe import Recipe, load_recipe
from adaptome.training.adapters import gathered_adapters, write_adapters
from adaptome.training.arguments import stream_metric
from adaptome.training.building import write_merged
from adaptome.training.folder import ADAPTER, METRICS, RECIPE, REPORT, TASK
from adaptome.training.learning import Learning
from adaptome.training.memory import PeakMemory
from adaptome.training.page import write_report
from adaptome.training.predicting import AFTER, STREAM, strategy_of, write_stream
from adaptome.training.progress import Progress
from adaptome.training.runs import Result, load_run


def run_continual(
    recipe: Recipe | str | Path,
    callbacks: Sequence[TrainerCallback] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Result:
    """Learn a recipe's stream of tasks.

    A task ends with its last weights; validation rows are not used.

    Args:
        recipe: a recipe with a `continual` section, its path, or the name of one that comes with adaptome.
        callbacks: of each round's Trainer; None for a progress bar.
        tell: is given a line before each round.

    Raises:
        RecipeError, DataError: the recipe, its stream or its data cannot be used.
        TrainingError: the folder holds another run, or the loss became NaN.
        CheckpointError: nothing can be resumed from, or the disk is full.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder, peak, began = Path(recipe.output.folder), PeakMemory(), time.perf_counter()
    strategy = _strategy(recipe)
    _check_folder(recipe, folder)
    if recipe.start is not None and recipe.start.how == "merged":
        write_merged(Path(recipe.start.run), partial(load_run, single=True))
    learning = Learning(recipe, strategy, [Progress()] if callbacks is None else list(callbacks))
    _make_room(recipe, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECIPE, recipe.to_yaml(full=True))
    write_atomic(folder / TASK, json.dumps(learning.task.to_dict(), indent=1))
    write_stream(folder, learning.loop, [name for name, _ in learning.rounds])
    scores: list[dict[str, Any]] = []
    for at, (name, parts) in enumerate(learning.rounds):
        learning.loop.at = at
        if (folder / name / AFTER).is_dir():
            scores.append(learning.restored(folder / name / AFTER))
            continue
        if tell is not None:
            tell(
                f"{name}: round {at + 1} of {len(learning.rounds)}, {len(parts)} of {len(learning.loop.stream.parts)} tasks"
            )
        scores.append(learning.learned(folder / name))
    made = _result(learning, scores, round(time.perf_counter() - began, 3), peak.bytes())
    write_adapters(folder / ADAPTER, gathered_adapters(learning.loop.model))
    write_atomic(folder / METRICS, json.dumps(made.to_dict(), indent=1))
    write_report([folder])
    return made


def _strategy(recipe: Recipe) -> Strategy:
    if recipe.continual is None:
        raise RecipeError("the recipe has no `continual` section: it is carried out with `adaptome train`.")
    if recipe.stages:
        raise RecipeError("the recipe has stages: carry it out with `adaptome.training.run_stages`.")
    return strategy_of(recipe)


# -- the folder ----------------------------------------------------------------------------------------------------------


def _check_folder(recipe: Recipe, folder: Path) -> None:
    resume, overwrite = bool(recipe.training.resume), recipe.output.overwrite
    if not (folder / RECIPE).is_file() or (overwrite and not resume):
        return
    if not resume:
        raise TrainingError(
            f"{folder} holds a run already.\n"
            "  Go on with training.resume=true, start over with output.overwrite=true, or choose another output.folder."
        )
    then, now = (_compared(r) for r in (load_recipe(folder / RECIPE), recipe))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        raise TrainingError(
            f"the run in {folder} cannot go on with another {', '.join(changed)} than it was begun with: every task is to be learned the same way.\n"
            "  Give them as they were, or start anew: another output.folder, or output.overwrite=true without training.resume."
        )


def _compared(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude={"output", "title", "evaluation"})
    content["training"].pop("resume")
    return content


def _make_room(recipe: Recipe, folder: Path) -> None:
    if recipe.training.resume or not recipe.output.overwrite or not folder.is_dir():
        return
    told = json.loads((folder / STREAM).read_text(encoding="utf-8")) if (folder / STREAM).is_file() else {"rounds": []}  # fmt: skip
    rounds = [folder / one["name"] for one in told["rounds"] if (folder / one["name"]).is_dir()]
    for path in [*rounds, *([folder / ADAPTER] if (folder / ADAPTER).is_dir() else [])]:
        remove_folder(path)
    for name in (METRICS, RECIPE, TASK, STREAM, REPORT):
        (folder / name).unlink(missing_ok=True)


def _result(learning: Learning, scores: list[dict[str, Any]], seconds: float, memory: int) -> Result:
    recipe, loop = learning.recipe, learning.loop
    assert recipe.continual is not None
    _, greater = stream_metric(recipe, learning.task)
    matrices = {scenario: [row["rows"][scenario] for row in scores] for scenario in scores[-1]["rows"]}
    metrics = {
        f"{scenario}_{name}": value
        for scenario, matrix in matrices.items()
        for name, value in measures(matrix, greater).items()
    }
    if scores[-1]["whole"] is not None:
        metrics["class_whole"] = scores[-1]["whole"]
    report = ad.trainable(loop.model)
    told = {
        "strategy": recipe.continual.strategy.name,
        "metric": stream_metric(recipe, learning.task)[0],
        "tasks": [part.name for part in loop.stream.parts],
        "rounds": [name for name, _ in learning.rounds],
        "classes": [[(learning.task.labels or [])[c] for c in part.classes] for part in loop.stream.parts],
        "matrices": matrices,
        "whole": [row["whole"] for row in scores],
        "steps": [row["steps"] for row in scores],
    }
    return Result(
        folder=recipe.output.folder,
        adapter=str(Path(recipe.output.folder) / ADAPTER),
        task=recipe.task.name,
        method="+".join(section.name for section in recipe.methods),
        split=learning.split,
        metrics=metrics,
        history=_history(scores),
        trainable_parameters=report.count,
        total_parameters=report.total,
        steps=sum(row["steps"] for row in scores),
        best_step=None,
        seconds=seconds,
        peak_memory_bytes=memory,
        notes=learning.notes,
        continual=told,
    )


def _history(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log of all rounds, steps counted on from one to the next."""
    made, before = [], 0
    for row in scores:
        made += [{**entry, "step": entry["step"] + before} for entry in row["history"]]
        before += row["steps"]
    return made
