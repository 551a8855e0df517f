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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback

import adaptome as ad
from adaptome.continual import Strategy, Stream, get_strategy, measures
from adaptome.continual.loop import Loop, as_of, masked
from adaptome.continual.losses import class_term
from adaptome.continual.stream import by_column, by_labels, joined
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.core.files import atomic_folder, remove_folder, write_atomic
from adaptome.data import Splits, load_splits
from adaptome.objectives import Seen, Term, Terms
from adaptome.objectives.cross_entropy import CrossEntropy
from adaptome.recipe import Recipe, load_recipe
from adaptome.tasks import Prepared, Task, get_task
from adaptome.training.adapters import gathered_adapters, restore_adapters, write_adapters
from adaptome.training.arguments import best_metric
from adaptome.training.building import attach, base_model, read, spec, write_merged
from adaptome.training.continual_page import page
from adaptome.training.folder import ADAPTER, CHECKPOINTS, METRICS, RECIPE, TASK
from adaptome.training.memory import PeakMemory
from adaptome.training.progress import Progress
from adaptome.training.runs import Result, load_run, measured, trainer_of
from adaptome.training.state import read_state, write_state

AFTER, SCORES, STRATEGY, REPORT = "after", "scores.json", "strategy", "report.html"


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
        write_merged(Path(recipe.start.run), load_run)
    learning = Learning(recipe, strategy, [Progress()] if callbacks is None else list(callbacks))
    _make_room(recipe, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECIPE, recipe.to_yaml(full=True))
    write_atomic(folder / TASK, json.dumps(learning.task.to_dict(), indent=1))
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
    page(recipe, made).write(folder / REPORT)
    write_atomic(folder / METRICS, json.dumps(made.to_dict(), indent=1))
    return made


class Learning:
    """A stream, its model and its strategy, while they are being put to work."""

    def __init__(self, recipe: Recipe, strategy: Strategy, callbacks: list[TrainerCallback]):
        # what is best is not chosen on a task's own validation rows: that would be another thing for every strategy
        self.recipe = recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"keep_best": False})}
        )
        self.strategy, self.callbacks = strategy, callbacks
        self.task = get_task(recipe.task.name, **recipe.task.settings)
        self.processor = self.task.load_processor(spec(recipe))
        splits, self.split, stream = _stream_data(recipe, self.task)
        self.data = self.task.prepare(splits, self.processor)
        for name in ("train", self.split):
            if len(self.data[name]) != len(splits[name]):
                raise RecipeError(
                    f"continual: the task {self.task.name} makes {len(self.data[name])} examples of {len(splits[name])} rows of {name}, and the "
                    "stream is told apart by rows.\n  Turn off what joins or leaves out rows, e.g. task.packing=false."
                )
        stream = stream or _by_labels(recipe, self.task, self.data, self.split)
        strategy.check(stream, recipe.training)
        model, self.terms, also = base_model(recipe, self.task, self.processor)
        heads = tuple(self.task.head_patterns(model))
        self.notes = [*self.data.notes, *attach(recipe, self.task, model, also)]
        rounds = strategy.rounds(stream)
        names = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        self.loop = Loop(
            model, stream, names, tuple(n for n in names if n.startswith(heads)) if heads else (),
            len(self.task.labels or ()), recipe.training.seed, rounds,
        )  # fmt: skip
        self.loop.gradient = self._gradient
        self.rounds = [
            (f"{i}-{stream.parts[r[0]].name if len(r) == 1 else 'joint'}", r) for i, r in enumerate(rounds, 1)
        ]
        self.steps = 0

    # -- a round -------------------------------------------------------------------------------------------------------

    def learned(self, folder: Path) -> dict[str, Any]:
        """Train a round, score what was seen, and write what comes after it."""
        loop, strategy = self.loop, self.strategy
        strategy.begin(loop)
        self.trainer = self._trainer(folder)
        self.trainer.train(
            resume_from_checkpoint=bool(self.recipe.training.resume) and (folder / CHECKPOINTS).is_dir()
        )
        strategy.end(loop)
        scores = self._scores() | {
            "steps": self.trainer.state.global_step,
            "history": list(self.trainer.state.log_history),
        }
        with atomic_folder(folder / AFTER) as staging:
            write_adapters(staging / "adapters", gathered_adapters(loop.model), always_named=True)
            write_state(staging, STRATEGY, strategy.state())
            (staging / SCORES).write_text(json.dumps(scores, indent=1), encoding="utf-8")
        if (folder / CHECKPOINTS).is_dir():
            remove_folder(folder / CHECKPOINTS)
        return scores

    def restored(self, folder: Path) -> dict[str, Any]:
        """Go to what came after a finished round."""
        restore_adapters(self.loop.model, folder / "adapters")
        self.strategy.restore(read_state(folder, STRATEGY))
        scores: dict[str, Any] = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        return scores

    def _trainer(self, folder: Path) -> Any:
        loop, strategy = self.loop, self.strategy
        recipe = self.recipe.model_copy(
            update={"output": self.recipe.output.model_copy(update={"folder": str(folder)})}
        )
        data = self._only({"train": strategy.rows(loop)})
        callbacks = [*self.callbacks, *strategy.callbacks(loop)]
        return trainer_of(recipe, self.task, self.processor, data, loop.model, callbacks, self._loss())

    def _loss(self) -> Terms | None:
        """The recipe's terms, the strategy's own in place of the model's loss, and what it adds."""
        loop, strategy = self.loop, self.strategy
        main, added = strategy.main(loop), strategy.added(loop)
        terms = self.terms
        if main is not None:
            terms = [
                main,
                *(
                    t
                    for t in terms
                    if t.objective.name != "model" and not isinstance(t.objective, CrossEntropy)
                ),
            ]
        elif added and not terms:
            terms = [_model_term()]
        terms = [*terms, *added]
        return Terms(loop.model, terms, strategy.teachers(loop)) if terms else None

    def _only(self, rows: dict[str, Sequence[int]]) -> Prepared:
        """The data with these rows of these splits alone."""
        return replace(
            self.data, splits={name: _chosen(self.data[name], chosen) for name, chosen in rows.items()}
        )

    # -- what a strategy asks for --------------------------------------------------------------------------------------

    def _gradient(self, rows: Sequence[int], what: str) -> Tensor:
        """See `Loop.gradient`."""
        trainer, loop = self.trainer, self.loop
        model, parameters = loop.model, list(loop.parameters.values())
        batch = trainer.collated([self.data["train"][int(row)] for row in rows])
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.enable_grad(), trainer.given(batch) as own:
                outputs = model(**own)
                if what == "logit":
                    labels = own["labels"]
                    value = outputs["logits"].gather(1, labels[:, None]).mean()
                elif loop.stream.kind == "class":
                    value = class_term(loop.seen).objective.value(outputs, own, Seen(model))
                else:
                    value = outputs["loss"]
                found = torch.autograd.grad(value, parameters, allow_unused=True)
        finally:
            for module, mode in modes:
                module.training = mode
        given = zip(found, parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in given])

    # -- scores --------------------------------------------------------------------------------------------------------

    def _scores(self) -> dict[str, Any]:
        """A row of every matrix: the tasks of this round and those before it."""
        loop, parts = self.loop, self.loop.stream.parts
        seen = {n for r in loop.rounds[: loop.at + 1] for n in r}
        metric, _ = best_metric(self.recipe, self.task)
        data = self._only({self.split: range(len(self.data[self.split]))})
        trainer = trainer_of(
            self.recipe, self.task, self.processor, data, loop.model, [], None, only=self.split
        )
        rows: dict[str, list[float | None]] = {}
        found: list[tuple[Any, Any]] = []
        for number, part in enumerate(parts):
            if number not in seen:
                for row in rows.values():
                    row.append(None)
                continue
            rows_of = _chosen(self.data[self.split], part.test)
            with self.strategy.scoring(loop, number):
                if loop.stream.kind == "domain":
                    own = {"domain": measured(trainer, self.task, rows_of, self.split)}
                else:
                    trainer.preprocess_logits_for_metrics = trainer.compute_metrics = None
                    with self._predicting():
                        told = trainer.predict(rows_of)
                    found.append((told.predictions, told.label_ids))
                    near = masked(torch.as_tensor(told.predictions), part.classes).numpy()
                    own = {"task": self.task.metrics(EvalPrediction(near, found[-1][1]))}
                    if not self.strategy.task_known:
                        own["class"] = self.task.metrics(EvalPrediction(*found[-1]))
            for scenario, metrics in own.items():
                if metric not in metrics:
                    raise RecipeError(f"training.metric={metric}: the task has {', '.join(metrics)}.")
                rows.setdefault(scenario, [None] * number).append(float(metrics[metric]))
        whole = None
        if found and not self.strategy.task_known:
            logits, labels = (torch.cat([torch.as_tensor(f[i]) for f in found]).numpy() for i in (0, 1))
            whole = float(self.task.metrics(EvalPrediction(logits, labels))[metric])
        return {"rows": rows, "whole": whole}

    @contextmanager
    def _predicting(self) -> Iterator[None]:
        """Within, the model's logits are those that the strategy predicts by."""
        loop, inside = self.loop, False

        def hook(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
            nonlocal inside
            if inside:
                return None
            inside = True
            try:
                logits = self.strategy.logits(
                    loop, outputs, lambda values: as_of(module, values, *args, **kwargs)
                )
            finally:
                inside = False
            return type(outputs)(**{**outputs, "logits": logits})

        handle = loop.model.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _model_term() -> Term:
    from adaptome.objectives import get_objective

    return Term(get_objective("model"))


def _chosen(rows: Any, numbers: Sequence[int]) -> Any:
    return (
        rows.select(list(numbers))
        if hasattr(rows, "select")
        else torch.utils.data.Subset(rows, list(numbers))
    )


# -- the stream ----------------------------------------------------------------------------------------------------------


def _strategy(recipe: Recipe) -> Strategy:
    if recipe.continual is None:
        raise RecipeError("the recipe has no `continual` section: it is carried out with `adaptome train`.")
    if recipe.stages:
        raise RecipeError("the recipe has stages: carry it out with `adaptome.training.run_stages`.")
    return get_strategy(recipe.continual.strategy.name, **recipe.continual.strategy.settings)


def _stream_data(recipe: Recipe, task: Task) -> tuple[Splits, str, Stream | None]:
    """The data, the split to score on, and the stream; None for one by labels, which the prepared data tells."""
    assert recipe.continual is not None
    section = recipe.continual.stream
    if section.by == "data":
        named = []
        for one in section.tasks:
            how: dict[str, Any] = {
                "prefer": task.prefer,
                "texts": task.texts,
                "files": task.files,
                "chats": task.chats,
            }
            named.append((one.name, load_splits(**one.data.model_dump(), **how)))
        split = _scored(recipe, named[0][1]) if named else "test"
        splits, stream = joined(named, split)
        return splits, split, stream
    splits = read(recipe, task)
    if "train" not in splits:
        raise RecipeError("the data has no train split: give data.train, or a data set that has one.")
    split = _scored(recipe, splits)
    kept = Splits({name: splits[name] for name in ("train", split)}, splits.notes)
    if section.by == "labels":
        return kept, split, None
    order = section.order if isinstance(section.order, list) else None
    return kept, split, by_column(kept["train"], kept[split], str(section.column), order)


def _scored(recipe: Recipe, splits: Splits) -> str:
    asked = recipe.evaluation.split
    if asked == "none":
        raise RecipeError(
            "evaluation.split=none: a stream is scored after each task. Give test or validation."
        )
    found = asked or next((name for name in ("test", "validation") if name in splits), None)
    if found is None or found not in splits:
        raise RecipeError(
            f"continual: there is no {found or 'test or validation'} split to score on. Splits: {', '.join(splits)}."
        )
    return found


def _by_labels(recipe: Recipe, task: Task, data: Prepared, split: str) -> Stream:
    assert recipe.continual is not None
    section = recipe.continual.stream
    if not task.labels or "labels" not in getattr(data["train"], "column_names", ()):
        raise RecipeError(
            f"continual.stream: by=labels needs a task whose rows have a label; {task.name} has none."
        )
    groups = None if section.groups is None else [[str(label) for label in group] for group in section.groups]
    train, test = (data[name].with_format(None)["labels"] for name in ("train", split))
    order: Any = section.order
    return by_labels(train, test, task.labels, section.size, groups, order, section.seed, section.overlap)


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
    rounds = [
        path for path in folder.glob("[0-9]*-*") if (path / AFTER).is_dir() or (path / CHECKPOINTS).is_dir()
    ]
    for path in [*rounds, *([folder / ADAPTER] if (folder / ADAPTER).is_dir() else [])]:
        remove_folder(path)
    for name in (METRICS, RECIPE, TASK, REPORT):
        (folder / name).unlink(missing_ok=True)


def _result(learning: Learning, scores: list[dict[str, Any]], seconds: float, memory: int) -> Result:
    recipe, loop = learning.recipe, learning.loop
    assert recipe.continual is not None
    _, greater = best_metric(recipe, learning.task)
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
        "metric": best_metric(recipe, learning.task)[0],
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
        history=[entry for row in scores for entry in row["history"]],
        trainable_parameters=report.count,
        total_parameters=report.total,
        steps=sum(row["steps"] for row in scores),
        best_step=None,
        seconds=seconds,
        peak_memory_bytes=memory,
        notes=learning.notes,
        continual=told,
    )
