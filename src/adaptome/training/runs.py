"""A recipe carried out: data and model, adapters, training, evaluation, and a folder that holds it all (`training.folder`)."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback

import adaptome as ad
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.core.files import write_atomic
from adaptome.core.plan import Plan
from adaptome.objectives import terms_of
from adaptome.recipe import MethodSection, Recipe, load_recipe
from adaptome.tasks import Task, task_from_dict
from adaptome.training.adapters import gathered_adapters, write_adapters
from adaptome.training.allocator import keep_freed_memory
from adaptome.training.averaging import averaging
from adaptome.training.building import (
    adapter_names,
    attach,
    base_model,
    load_adapters,
    planned,
    prepared,
    read,
    spec,
    write_merged,
)
from adaptome.training.examples import Scored, examples_of, write_examples, write_scores
from adaptome.training.filling import fill
from adaptome.training.folder import (
    ADAPTER,
    METRICS,
    PREDICTIONS,
    RECIPE,
    TASK,
    check_room,
    last_stage,
    make_room,
)
from adaptome.training.measuring import judged_without, measured, without_adapters
from adaptome.training.memory import PeakMemory
from adaptome.training.objectives import assembled, check_end
from adaptome.training.page import write_report
from adaptome.training.predicting import predict_by_strategy, run_of, scored_rows
from adaptome.training.predictions import predictions_on, write_predictions
from adaptome.training.progress import Progress
from adaptome.training.resuming import changed_settings, write_data
from adaptome.training.sketches import sketches
from adaptome.training.trainer import AdapterCheckpoints
from adaptome.training.trainers import final_split, trainer_of

logger = logging.getLogger(__name__)

#: recipe -> bytes of memory at its training's worst moment; None where that cannot be told
Foretell = Callable[[Recipe], int | None]


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        folder: the recipe's output folder; `adapter` the adapter's in it.
        method: names of the methods, joined by '+'.
        metrics: of the final evaluation, on `split`; empty when there was none.
        history: transformers' log: the loss curve and every evaluation.
        trainable_parameters: trained numbers, of `total_parameters` of the model with its adapters.
        steps: optimizer steps done.
        best_step: the step whose weights were kept; None for the last.
        seconds: of training, evaluations in between included; of this process when resumed.
        peak_memory_bytes: see `training.memory`.
        notes: what preparing the data changed, and what loading the model found.
        continual: of a stream: its tasks, and the matrices of scores (see `training.continual`).
        share_of_bound: how near its steps came to the least work (see `training.bound`); None where that is not counted.
        foretold_memory_bytes: the peak that was told before it began; None where nobody was asked.
    """

    folder: str
    adapter: str
    task: str
    method: str
    split: str | None
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    trainable_parameters: int
    total_parameters: int
    steps: int
    best_step: int | None
    seconds: float
    peak_memory_bytes: int
    notes: list[str] = field(default_factory=list)
    continual: dict[str, Any] | None = None
    share_of_bound: float | None = None
    foretold_memory_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of metrics.json."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A finished run, ready to be used."""

    recipe: Recipe
    task: Task
    processor: Any
    model: nn.Module


def run(
    recipe: Recipe | str | Path,
    callbacks: Sequence[TrainerCallback] | None = None,
    foretell: Foretell | None = None,
) -> Result:
    """Train as a recipe says.

    Args:
        recipe: a recipe, its path, or the name of one that comes with adaptome.
        callbacks: transformers callbacks beside the recipe's own; None for a progress bar on standard error.
        foretell: tells the peak of memory in bytes before anything is loaded, for the result to hold beside the measured one.

    Raises:
        RecipeError, DataError: the recipe or its data cannot be used.
        TrainingError: the folder holds a finished run, or the loss became NaN.
        CheckpointError: nothing can be resumed from, or the disk is full.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.stages:
        raise RecipeError("the recipe has stages: carry it out with `adaptome.training.run_stages`.")
    if recipe.continual is not None:
        raise RecipeError("the recipe is of a stream: carry it out with `adaptome continual`.")
    folder = Path(recipe.output.folder)
    check_room(recipe, folder)
    peak = PeakMemory()
    if recipe.training.device == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    if recipe.start is not None and recipe.start.how == "merged":
        write_merged(Path(recipe.start.run), partial(load_run, single=True))
    foretold = None if foretell is None else foretell(recipe)
    task, processor, splits, data = prepared(recipe, load_run)
    if data.get("train") is None:
        raise RecipeError("the data has no train split: give data.train, or a data set that has one.")
    split = final_split(recipe, data)
    resumed = changed_settings(recipe, folder, task, splits)
    for told in resumed:
        logger.warning("%s", told)
    model, terms, also = base_model(recipe, task, processor)
    check_end(recipe, terms, data.get("validation") is not None)
    notes = [
        *data.notes,
        *task.loading_notes,
        *resumed,
        *attach(recipe, task, model, also, processor, data.get("train")),
    ]
    loss = assembled(recipe, task, processor, model, terms)
    make_room(recipe, folder)
    trainer = trainer_of(
        recipe,
        task,
        processor,
        data,
        model,
        [
            *([Progress()] if callbacks is None else callbacks),
            *_stopping(recipe),
            *averaging(recipe, data.get("validation") is not None),
            *sketches(task, processor, folder),
        ],
        loss,
    )
    # the Trainer has put the model where it trains
    notes += fill(model, adapter_names(recipe), data)
    if trainer.args.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RECIPE, recipe.to_yaml(full=True))
        write_atomic(folder / TASK, json.dumps(task.to_dict(), indent=1))
        write_data(folder, splits)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=recipe.training.resume)
    seconds, history = time.perf_counter() - began, list(trainer.state.log_history)
    adapters = gathered_adapters(trainer.model)
    if trainer.args.should_save:
        write_adapters(folder / ADAPTER, adapters)
    metrics = {}
    if split:
        measuring = trainer_of(recipe, task, processor, data, trainer.model, [], loss, only=split)
        scored = Scored(task)
        if measuring.compute_metrics is not None and task.trainer == "trainer":
            measuring.compute_metrics = scored
        metrics = {} if split in data.only_asked else measured(measuring, task, data[split], split)
        scores = scored.scores  # measuring without the adapters makes others
        if split not in data.only_asked and (task.measures_before or measuring.measures):
            metrics |= without_adapters(measuring, task, data[split], split)
        found = None
        if task.judges or recipe.evaluation.predictions:
            size = measuring.args.per_device_eval_batch_size
            found = predictions_on(task, trainer.model, processor, splits[split], data[split], size)
            metrics |= task.judge(splits[split], found) if task.judges else {}
            if task.judges and task.measures_before:
                metrics |= judged_without(
                    task, trainer.model, processor, splits[split], data[split], found, size
                )
            if recipe.evaluation.predictions and trainer.args.should_save:
                write_predictions(folder / PREDICTIONS, task, splits[split], data[split], found)
        if trainer.args.should_save and trainer.args.world_size == 1:
            write_scores(folder, scores)
            count = recipe.evaluation.examples
            shown = examples_of(count, task, trainer.model, processor, splits[split], data[split], found) if count else []  # fmt: skip
            write_examples(folder, shown)
    notes += [note for note in trainer.notes if note not in notes]
    result = result_of(recipe, trainer, metrics, split, history, seconds, peak.bytes(), notes, foretold)
    if trainer.args.should_save:
        write_atomic(folder / METRICS, json.dumps(result.to_dict(), indent=1))
        write_report([folder])
    return result


def plans(recipe: Recipe, sections: Sequence[MethodSection]) -> list[Plan]:
    """What each method alone would put on the recipe's model: its data read, its base loaded, nothing trained.

    Raises:
        RecipeError, DataError: the recipe or its data cannot be used, or there is no split to score on.
        TargetError, MethodError, HostError: a method does not go with the model.
    """
    task, processor, _, data = prepared(recipe)
    if final_split(recipe, data) is None:
        raise RecipeError(
            "there is no split to score on: give data.test or data.validation, and evaluation.split."
        )
    model, _, also = base_model(recipe, task, processor)
    return [planned(recipe, task, model, section, also) for section in sections]


def load_run(folder: str | Path, overrides: Sequence[str] = (), single: bool = False) -> Loaded:
    """The model of a finished run with its adapters, its task and its processor.

    Args:
        folder: the run's output folder; of a stream's run also a task's, for the run as it was after that task.
        overrides: changes to its recipe, e.g. ["task.num_beams=4"]; the labels stay those it was trained with.
        single: refuse a stream's run that answers with several sets of adapters, for what takes the model's weights.

    Raises:
        TrainingError: the folder holds no finished run.
        RecipeError: a change that is not valid, or to another task.
        CheckpointError: the adapter cannot be used.
    """
    folder, at = run_of(last_stage(Path(folder)))
    missing = [name for name in (RECIPE, TASK, ADAPTER) if not (folder / name).exists()]
    if missing:
        raise TrainingError(
            f"{folder} holds no finished run: {', '.join(missing)} missing.\n"
            f"  Give the output folder of `adaptome train`."
        )
    recipe = load_recipe(folder / RECIPE, overrides)
    saved = json.loads((folder / TASK).read_text(encoding="utf-8"))
    if recipe.task.name != saved["name"]:
        raise RecipeError(f"task.name={recipe.task.name!r}: the run in {folder} learned {saved['name']}.")
    task = task_from_dict({**saved, "options": {**saved["options"], **recipe.task.settings}})
    if (folder / METRICS).is_file():
        task.learned(json.loads((folder / METRICS).read_text(encoding="utf-8")))
    processor = task.load_processor(spec(recipe))
    model, _, _ = base_model(recipe, task, processor)
    load_adapters(folder / ADAPTER, recipe, model)
    if recipe.continual is not None:
        predict_by_strategy(folder, at, recipe, task, model, single)
    model.eval()
    if recipe.training.device == "auto" and torch.cuda.is_available():
        model.to("cuda")
    return Loaded(recipe, task, processor, model)


def evaluate(folder: str | Path, split: str | None = None, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of a finished run on one of its splits.

    Args:
        folder: the run's output folder.
        split: 'train', 'validation' or 'test'; None for test, else validation.
        overrides: changes to the recipe, e.g. ["data.test=other.jsonl", "task.num_beams=4"].
    """
    loaded = load_run(folder, overrides)
    recipe = loaded.recipe
    if recipe.continual is None:
        splits = read(recipe, loaded.task)
        data = loaded.task.prepare(splits, loaded.processor)
        chosen = split or final_split(recipe, data)
    else:
        place = last_stage(Path(folder))
        splits, data, chosen = scored_rows(place, recipe, loaded.task, loaded.processor, split)
    if chosen is None or data.get(chosen) is None:
        there = ", ".join(data.splits)
        raise RecipeError(
            f"there is no {chosen or 'test or validation'} split to evaluate on. Splits: {there}."
        )
    for name in ad.adapters(loaded.model):
        ad.set_trainable(loaded.model, name)  # the Trainer takes no model of which nothing trains
    task, model, processor = loaded.task, loaded.model, loaded.processor
    loss = assembled(recipe, task, processor, model, terms_of(recipe.objective))
    trainer = trainer_of(recipe, task, processor, data, model, [], loss, only=chosen)
    metrics = {} if chosen in data.only_asked else measured(trainer, task, data[chosen], chosen)
    if task.judges:
        size = trainer.args.per_device_eval_batch_size
        found = predictions_on(task, model, processor, splits[chosen], data[chosen], size)
        metrics |= task.judge(splits[chosen], found)
    return metrics


def predict(folder: str | Path, inputs: Sequence[Any], batch_size: int = 32) -> list[Any]:
    """A finished run's predictions, one for each input, in the form the task gives them."""
    loaded = load_run(folder)
    return loaded.task.predict(loaded.model, loaded.processor, inputs, batch_size)


def calibration(loaded: Loaded, count: int, split: str = "train") -> list[Any]:
    """The first batches of one of a run's splits, as its model takes them: what a conversion measures on.

    Raises:
        RecipeError, DataError: the data cannot be read again, or has no such split.
    """
    recipe, task, processor, model = loaded.recipe, loaded.task, loaded.processor, loaded.model
    data = task.prepare(read(recipe, task), processor)
    if data.get(split) is None:
        raise RecipeError(f"there is no {split} split to calibrate on. Splits: {', '.join(data.splits)}.")
    for name in ad.adapters(model):
        ad.set_trainable(model, name)  # the Trainer takes no model of which nothing trains
    loss = assembled(recipe, task, processor, model, terms_of(recipe.objective))
    batches = trainer_of(recipe, task, processor, data, model, [], loss, only=split).get_eval_dataloader()
    return list(itertools.islice(batches, count))


# -- the parts of a run --------------------------------------------------------------------------------------------


def _stopping(recipe: Recipe) -> list[TrainerCallback]:
    patience = recipe.training.early_stopping
    return [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []


def result_of(
    recipe: Recipe,
    trainer: AdapterCheckpoints,
    metrics: dict[str, float],
    split: str | None,
    history: list[dict[str, Any]],
    seconds: float,
    memory: int,
    notes: list[str],
    foretold: int | None = None,
) -> Result:
    report = ad.trainable(trainer.model)
    kept_best = trainer.args.load_best_model_at_end
    return Result(
        folder=recipe.output.folder,
        adapter=str(Path(recipe.output.folder) / ADAPTER),
        task=recipe.task.name,
        method="+".join(section.name for section in recipe.methods),
        split=split,
        metrics=metrics,
        history=history,
        trainable_parameters=report.count,
        total_parameters=report.total,
        steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step if kept_best else None,
        seconds=round(seconds, 3),
        peak_memory_bytes=memory,
        notes=notes,
        share_of_bound=trainer.pace.share(trainer.model),
        foretold_memory_bytes=foretold,
    )
