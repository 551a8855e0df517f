"""A comparison carried out: every method with every seed is a run of its own, and the table is made of their metrics.

<output.folder>/
  <label>/search/     the search for its learning rate, where there is one (`compare.search`)
  <label>/seed-<n>/   a finished run each, as `adaptome train` leaves it
  comparison.json     the table; results.parquet a line per run; results.md
  report.html         the same to look at

Begun again, a comparison takes the runs that are finished as they are, and resumes the one that was interrupted.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from adaptome.compare.page import page
from adaptome.compare.results import read_published, write_results
from adaptome.compare.rows import recipe_of, sections_of
from adaptome.compare.search import BEST, SEARCH, search
from adaptome.compare.speed import speed_of
from adaptome.compare.staged import last_stage
from adaptome.compare.table import Comparison, Row, half_width
from adaptome.compare.workers import Workers, workers
from adaptome.core.errors import RecipeError
from adaptome.core.files import write_atomic
from adaptome.recipe import (
    ComparedMethod,
    RangeSection,
    Recipe,
    SearchSection,
    load_recipe,
)
from adaptome.tasks import get_task
from adaptome.training.arguments import greater_is_better
from adaptome.training.building import write_merged
from adaptome.training.folder import METRICS, PREDICTIONS, RECIPE
from adaptome.training.runs import load_run, plans, run

COMPARISON, REPORT = "comparison.json", "report.html"
RATE = "training.learning_rate"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """What has just happened in a comparison: a run or a search `begun`, or `done` with its value.

    Attributes:
        label: the row. seed: of the run; None for the search for its learning rate.
        value: the metric of the run, or the learning rate found; None when begun.
        finished, total: pieces of work of the whole comparison: a search counts as its trials.
        seconds: since the comparison was begun.
    """

    label: str
    seed: int | None
    done: bool
    value: float | None
    finished: int
    total: int
    seconds: float


def compare(
    recipe: Recipe | str | Path,
    tell: Tell | None = None,
    callbacks: Sequence[Any] | None = None,
    *,
    watch: Callable[[Step], None] | None = None,
    jobs: int = 1,
    ray: str | None = None,
    beside: str | Path | None = None,
) -> Comparison:
    """Train every method of a recipe's `compare` section with every seed, and write the table.

    Args:
        recipe: a recipe, its path, or the name of one that comes with adaptome.
        tell: is given a line before each run.
        callbacks: of each run, as `training.run` takes them; for runs in this process only.
        watch: is given every `Step`.
        jobs: runs at once, each in a process of its own (0: one on each GPU); 1 for this process.
        ray: address of a Ray cluster for the runs, or "local"; its machines see the recipe's folder under the same path.
        beside: a CSV file of PEFT's method comparison, whose rows the report lays beside.

    Raises:
        RecipeError: there is nothing to compare, or the metric is not among those of the runs.
        TargetError, MethodError, HostError: a method does not go with the model; raised before anything is trained.
        TrainingError: the folder holds runs of another recipe, or no trial of a search was completed.
        MissingExtraError: Optuna or ray is needed and not installed.
        DataError: `beside` is not such a file.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.compare is None or not recipe.compare.methods:
        raise RecipeError("there is nothing to compare: give compare.methods, a list of methods.")
    published = read_published(beside) if beside is not None else []
    recipe = last_stage(recipe, callbacks, tell)
    if recipe.start is not None and recipe.start.how == "merged":
        write_merged(Path(recipe.start.run), partial(load_run, single=True))  # once, ahead of all runs
    sections = sections_of(recipe)
    kinds = {label: recipe_of(recipe, label, s, 0) for label, s in sections.items()}
    for alike in _of_one_model(kinds.values()):
        plans(alike[0], [one.methods[0] for one in alike])
    task = get_task(recipe.task.name, **recipe.task.settings)
    assert recipe.compare is not None
    metric = recipe.compare.metric or task.headline
    with workers(jobs, ray) as pool:
        work = _Work(recipe, sections, metric, pool, tell, watch, callbacks)
        found = work.all()
    rows = [_row(label, sections[label], metric, recipe, work.rates.get(label), found[label]) for label in sections]  # fmt: skip
    split = str(next(iter(found.values()))[0]["split"])
    made = Comparison(
        recipe.output.folder, recipe.task.name, metric, greater_is_better(metric, task), split, recipe.compare.seeds, rows,
        recipe.model_dump(mode="json", exclude_defaults=True), versions(),
    )  # fmt: skip
    folder, content = Path(recipe.output.folder), made.to_dict()
    write_atomic(folder / COMPARISON, json.dumps(content, indent=1))
    write_results(folder, content, found)
    page(content, recipe.title, published).write(folder / REPORT)
    return made


def _of_one_model(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    """The recipes in groups of one model and task: what methods are planned on."""
    found: dict[str, list[Recipe]] = {}
    for one in recipes:
        key = json.dumps(
            [one.model.model_dump(mode="json"), one.task.model_dump(mode="json")], sort_keys=True
        )
        found.setdefault(key, []).append(one)
    return list(found.values())


class _Work:
    """The searches and runs of a comparison, handed out in the recipe's order; a row's runs follow its search."""

    def __init__(
        self,
        recipe: Recipe,
        sections: Mapping[str, ComparedMethod],
        metric: str,
        pool: Workers,
        tell: Tell | None,
        watch: Callable[[Step], None] | None,
        callbacks: Sequence[Any] | None,
    ) -> None:
        assert recipe.compare is not None
        self.recipe, self.sections, self.metric, self.pool = recipe, sections, metric, pool
        self.tell, self.watch, self.callbacks = tell, watch, callbacks if pool.lanes == 1 else []
        self.seeds, self.trials = recipe.compare.seeds, recipe.compare.trials
        self.rates: dict[str, float] = {}
        self.found: dict[str, dict[int, dict[str, Any]]] = {label: {} for label in sections}
        self.begun = self.finished = 0
        self.total = len(sections) * (len(self.seeds) + self.trials)
        self.since = time.monotonic()

    def all(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics of every run, by row in the order of the seeds."""
        ready: deque[tuple[str, int | None]] = deque()
        for label in self.sections:
            ready.extend([(label, None)] if self.trials else [(label, seed) for seed in self.seeds])
        pending: dict[Future[Any], tuple[str, int | None]] = {}
        while ready or pending:
            while ready and len(pending) < self.pool.lanes:
                label, seed = ready.popleft()
                pending[self._begin(label, seed)] = (label, seed)
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                label, seed = pending.pop(future)
                self._settle(label, seed, future.result())
                if seed is None:
                    ready.extendleft((label, seed) for seed in reversed(self.seeds))
        return {label: [runs[seed] for seed in self.seeds] for label, runs in self.found.items()}

    def _begin(self, label: str, seed: int | None) -> Future[Any]:
        section = self.sections[label]
        if seed is None:
            self._step(label, None, None)
            self._say(f"{label}: {self.trials} trials for its learning rate")
            one = _searched(self.recipe, label, section, self.seeds[0], self.metric)
            return self.pool.submit(_rate, one, self.callbacks)
        self.begun += 1
        self._step(label, seed, None)
        self._say(f"{label}, seed {seed} ({self.begun} of {len(self.sections) * len(self.seeds)})")
        one = recipe_of(self.recipe, label, section, seed, self.rates.get(label))
        assert self.recipe.compare is not None
        return self.pool.submit(_result, one, self.callbacks, self.recipe.compare.throughput)

    def _settle(self, label: str, seed: int | None, result: Any) -> None:
        if seed is None:
            self.rates[label], self.finished = result, self.finished + self.trials
            self._step(label, None, result)
            return
        if self.metric not in result["metrics"]:
            there = ", ".join(result["metrics"]) or "none"
            raise RecipeError(
                f"compare.metric={self.metric!r}: the runs have no such metric. They have: {there}."
            )
        self.found[label][seed], self.finished = result, self.finished + 1
        self._step(label, seed, float(result["metrics"][self.metric]))

    def _step(self, label: str, seed: int | None, value: float | None) -> None:
        if self.watch is not None:
            passed = time.monotonic() - self.since
            self.watch(Step(label, seed, value is not None, value, self.finished, self.total, passed))

    def _say(self, line: str) -> None:
        if self.tell is not None:
            self.tell(line)


def versions() -> dict[str, str]:
    """Of what the numbers hang on."""
    names = ("adaptome", "torch", "transformers", "datasets", "accelerate", "optuna")
    there = {d.metadata["Name"].lower() for d in importlib.metadata.distributions() if d.metadata["Name"]}
    found = {name: importlib.metadata.version(name) for name in names if name in there}
    return {"python": platform.python_version(), **found}


def _searched(recipe: Recipe, label: str, section: ComparedMethod, seed: int, metric: str) -> Recipe:
    """The recipe of the search for a row's learning rate."""
    assert recipe.compare is not None
    one = recipe_of(recipe, label, section, seed)
    middle = one.training.learning_rate
    rates = recipe.compare.learning_rates or RangeSection(low=middle / 10, high=middle * 10, log=True)
    wanted = SearchSection(
        ranges={RATE: rates}, trials=recipe.compare.trials, metric=metric, pruner=recipe.compare.pruner
    )
    folder = Path(one.output.folder).parent / "search"
    output = one.output.model_copy(update={"folder": str(folder)})
    return one.model_copy(update={"search": wanted, "output": output})


def _rate(recipe: Recipe, callbacks: Sequence[Any] | None) -> float:
    """The best learning rate of a search: read where the search is finished already, else searched for."""
    folder, section = Path(recipe.output.folder), recipe.search
    if section is not None and (folder / SEARCH).exists() and (folder / BEST).exists():
        table = json.loads((folder / SEARCH).read_text(encoding="utf-8"))
        rate = float(table["best"]["settings"][RATE])
        update = {
            "search": None,
            "training": recipe.training.model_copy(update={"learning_rate": rate}),
            "output": recipe.output.model_copy(update={"folder": str(folder / "best")}),
        }
        same = _content(load_recipe(folder / BEST, validate=False)) == _content(recipe.model_copy(update=update))  # fmt: skip
        if same and table["metric"] == section.metric and len(table["trials"]) == section.trials:
            return rate
    return float(search(recipe, callbacks=callbacks).best.settings[RATE])


def _result(recipe: Recipe, callbacks: Sequence[Any] | None, speed: bool = False) -> dict[str, Any]:
    """The metrics of a run, and its speed where that is asked for."""
    result = _finished(recipe, callbacks)
    if speed:
        result["metrics"] |= speed_of(Path(recipe.output.folder), result["split"])
    return result


def _finished(recipe: Recipe, callbacks: Sequence[Any] | None) -> dict[str, Any]:
    """The result of a run: read where it is finished already, else trained, from where it was interrupted."""
    folder = Path(recipe.output.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(
        folder.with_suffix(".lock")
    ):  # of two comparisons at once in a folder the later one waits, and reads
        if (folder / RECIPE).exists() and not recipe.output.overwrite:
            same = _content(load_recipe(folder / RECIPE, validate=False)) == _content(recipe)
            if same and (folder / METRICS).exists():
                return _with_classes(dict(json.loads((folder / METRICS).read_text(encoding="utf-8"))), folder)
            if same:
                training = recipe.training.model_copy(update={"resume": True})
                recipe = recipe.model_copy(update={"training": training})
        return _with_classes(run(recipe, callbacks).to_dict(), folder)


def _with_classes(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run's metrics with the share of each label's examples that were found, where its predictions are labels."""
    path = folder / PREDICTIONS
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    pairs = [(line["truth"], _label(line["prediction"])) for line in lines]
    classes = {}
    if pairs and all(isinstance(truth, str | int) and isinstance(made, str | int) for truth, made in pairs):
        count, right = (
            Counter(truth for truth, _ in pairs),
            Counter(truth for truth, made in pairs if truth == made),
        )
        classes = {str(name): right[name] / n for name, n in sorted(count.items(), key=lambda kv: str(kv[0]))}
    return {**result, "classes": classes}


def _label(prediction: Any) -> Any:
    return prediction.get("label") if isinstance(prediction, dict) else prediction


def _content(recipe: Recipe) -> dict[str, Any]:
    """What makes two runs the same."""
    content = recipe.model_dump(mode="json")
    content["training"].pop("resume")
    content["output"].pop("overwrite")
    return content


def _row(
    label: str,
    section: ComparedMethod,
    metric: str,
    recipe: Recipe,
    rate: float | None,
    found: list[dict[str, Any]],
) -> Row:
    values = [float(result["metrics"][metric]) for result in found]
    mean, half = statistics.fmean(values), half_width(values)
    trained = found[0]["trainable_parameters"]
    evaluating = [_evaluating(result["history"]) for result in found]
    training = [max(result["seconds"] - spent, 0.0) for result, spent in zip(found, evaluating, strict=True)]
    steps = [max(result["steps"], 1) for result in found]
    return Row(
        label=label,
        method=section.name,
        targets=section.targets,
        parameters=trained,
        share=trained / found[0]["total_parameters"],
        learning_rate=rate or section.learning_rate or recipe.training.learning_rate,
        values=values,
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        seconds=statistics.fmean(training),
        history=found[0]["history"],
        evaluation_seconds=statistics.fmean(evaluating),
        step_seconds=statistics.fmean(s / n for s, n in zip(training, steps, strict=True)),
        memory=max(result["peak_memory_bytes"] for result in found),
        budget=section.budget,
        metrics=_means([result["metrics"] for result in found]),
        classes=_means([result["classes"] for result in found]),
        trials=recipe.compare.trials if recipe.compare else 0,
    )


def _evaluating(history: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of the evaluations in a log."""
    return sum(float(entry["eval_runtime"]) for entry in history if "eval_runtime" in entry)


def _means(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Key by key, of those that every table has."""
    return {k: statistics.fmean(t[k] for t in tables) for k in tables[0] if all(k in t for t in tables)}
