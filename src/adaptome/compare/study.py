"""A comparison carried out: every method with every seed is a run of its own, and the table is made of their metrics.

<output.folder>/
  <label>/seed-<n>/   a finished run each, as `adaptome train` leaves it
  comparison.json     the table
  report.html         the same to look at

Begun again, a comparison takes the runs that are finished as they are, and resumes the one that was interrupted.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptome.compare.page import page
from adaptome.core.errors import RecipeError
from adaptome.core.files import write_atomic
from adaptome.recipe import ComparedMethod, MethodSection, Recipe, load_recipe
from adaptome.tasks import get_task
from adaptome.training.arguments import greater_is_better
from adaptome.training.folder import METRICS, RECIPE
from adaptome.training.runs import plans, run

COMPARISON, REPORT = "comparison.json", "report.html"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        label: its name in the table; method and targets as the recipe has them (targets None: the method's own).
        parameters: trained numbers, `share` of all of the model's with them.
        learning_rate: what it was trained with.
        values: the metric for every seed, in the order of the seeds.
        mean: of the values. low, high: ends of its 95 % interval (Student's t); None with one seed.
        seconds: of training, a mean.
        history: transformers' log of the first seed.
    """

    label: str
    method: str
    targets: str | list[str] | None
    parameters: int
    share: float
    learning_rate: float
    values: list[float]
    mean: float
    low: float | None
    high: float | None
    seconds: float
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison, its rows in the recipe's order."""

    folder: str
    task: str
    metric: str
    greater_is_better: bool
    split: str
    seeds: list[int]
    rows: list[Row]

    @property
    def best(self) -> Row:
        """The row with the best mean."""
        return (max if self.greater_is_better else min)(self.rows, key=lambda row: row.mean)

    @property
    def ranking(self) -> list[Row]:
        """The rows, best first."""
        return sorted(self.rows, key=lambda row: row.mean, reverse=self.greater_is_better)

    @property
    def rivals(self) -> list[Row]:
        """The rows that are not told apart from the best: by seed, the 95 % interval of their difference holds zero."""
        best, found = self.best, []
        for row in self.ranking:
            differences = [a - b for a, b in zip(best.values, row.values, strict=True)]
            half = _half_width(differences)
            if row.label != best.label and (half is None or abs(statistics.fmean(differences)) <= half):
                found.append(row)
        return found

    @property
    def by_method(self) -> dict[str, list[Row]]:
        """The rows of each method that has several, best first: its places or its sizes."""
        names = dict.fromkeys(row.method for row in self.rows)
        found = {name: [row for row in self.ranking if row.method == name] for name in names}
        return {name: rows for name, rows in found.items() if len(rows) > 1}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of comparison.json."""
        return {
            **asdict(self),
            "best": self.best.label,
            "ranking": [row.label for row in self.ranking],
            "not_told_apart": [row.label for row in self.rivals],
            "by_method": {name: [row.label for row in rows] for name, rows in self.by_method.items()},
        }


def compare(
    recipe: Recipe | str | Path, tell: Tell | None = None, callbacks: Sequence[Any] | None = None
) -> Comparison:
    """Train every method of a recipe's `compare` section with every seed, and write the table.

    Args:
        recipe: a recipe, its path, or the name of one that comes with adaptome.
        tell: is given a line before each run.
        callbacks: of each run, as `training.run` takes them.

    Raises:
        RecipeError: there is nothing to compare, or the metric is not among those of the runs.
        TargetError, MethodError, HostError: a method does not go with the model; raised before anything is trained.
        TrainingError: the folder holds runs of another recipe.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.compare is None or not recipe.compare.methods:
        raise RecipeError("there is nothing to compare: give compare.methods, a list of methods.")
    sections = _labelled(recipe.compare.methods)
    runs = {label: [_recipe(recipe, label, section, s) for s in recipe.compare.seeds] for label, section in sections.items()}  # fmt: skip
    plans(recipe, [seeds[0].methods[0] for seeds in runs.values()])
    task = get_task(recipe.task.name, **recipe.task.settings)
    metric = recipe.compare.metric or task.headline
    rows, split, done = [], "", 0
    for label, seeds in runs.items():
        found = []
        for one in seeds:
            done += 1
            if tell is not None:
                tell(f"{label}, seed {one.training.seed} ({done} of {len(runs) * len(seeds)})")
            found.append(_result(one, callbacks))
        if metric not in found[0]["metrics"]:
            there = ", ".join(found[0]["metrics"]) or "none"
            raise RecipeError(f"compare.metric={metric!r}: the runs have no such metric. They have: {there}.")
        split = str(found[0]["split"])
        rows.append(_row(label, sections[label], seeds[0], metric, found))
    made = Comparison(
        recipe.output.folder, recipe.task.name, metric, greater_is_better(metric, task), split, recipe.compare.seeds, rows
    )  # fmt: skip
    folder = Path(recipe.output.folder)
    write_atomic(folder / COMPARISON, json.dumps(made.to_dict(), indent=1))
    page(made.to_dict(), recipe.title).write(folder / REPORT)
    return made


def _labelled(methods: Sequence[ComparedMethod]) -> dict[str, ComparedMethod]:
    found: dict[str, ComparedMethod] = {}
    folders: dict[str, str] = {}
    for number, section in enumerate(methods):
        label = section.label or section.name
        other = folders.setdefault(_folder(label), label)
        if label in found or other != label:
            raise RecipeError(
                f"compare.methods: two rows are called {other!r}"
                + (f" and {label!r}, which share a folder" if other != label else "")
                + f". Give one another name: compare.methods.{number}.label."
            )
        found[label] = section
    return found


def _folder(label: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", label).strip("-.") or "method"


def _recipe(recipe: Recipe, label: str, section: ComparedMethod, seed: int) -> Recipe:
    """The recipe of one run: this method alone, with this seed, in a folder of its own."""
    own = section.model_dump(exclude={"label", "learning_rate"}, exclude_unset=True)
    method = MethodSection.model_validate(own)
    if method.budget is None and recipe.compare is not None:
        method.budget = recipe.compare.budget
    training = {"seed": seed, "learning_rate": section.learning_rate or recipe.training.learning_rate}
    folder = Path(recipe.output.folder) / _folder(label) / f"seed-{seed}"
    return recipe.model_copy(
        update={
            "methods": [method],
            "training": recipe.training.model_copy(update=training),
            "output": recipe.output.model_copy(update={"folder": str(folder)}),
            "compare": None,
        }
    )


def _result(recipe: Recipe, callbacks: Sequence[Any] | None) -> dict[str, Any]:
    """The metrics of a run: read where it is finished already, else trained, from where it was interrupted."""
    folder = Path(recipe.output.folder)
    if (folder / RECIPE).exists() and not recipe.output.overwrite:
        same = _content(load_recipe(folder / RECIPE, validate=False)) == _content(recipe)
        if same and (folder / METRICS).exists():
            return dict(json.loads((folder / METRICS).read_text(encoding="utf-8")))
        if same:
            training = recipe.training.model_copy(update={"resume": True})
            recipe = recipe.model_copy(update={"training": training})
    return run(recipe, callbacks).to_dict()


def _content(recipe: Recipe) -> dict[str, Any]:
    """What makes two runs the same."""
    content = recipe.model_dump(mode="json")
    content["training"].pop("resume")
    content["output"].pop("overwrite")
    return content


def _row(
    label: str, section: ComparedMethod, recipe: Recipe, metric: str, found: list[dict[str, Any]]
) -> Row:
    values = [float(result["metrics"][metric]) for result in found]
    mean, half = statistics.fmean(values), _half_width(values)
    trained = found[0]["trainable_parameters"]
    return Row(
        label=label,
        method=section.name,
        targets=section.targets,
        parameters=trained,
        share=trained / found[0]["total_parameters"],
        learning_rate=recipe.training.learning_rate,
        values=values,
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        seconds=statistics.fmean(result["seconds"] for result in found),
        history=found[0]["history"],
    )


def _half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean, by Student's t."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # scikit-learn brings it

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
