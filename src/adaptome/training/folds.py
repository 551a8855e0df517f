"""A recipe carried out once for every fold of its data, and the mean over the folds.

<output.folder>/
  fold-<name>/        a run (see `training.runs`), tested on this fold
  folds.json          every fold's scores, their mean and standard deviation; written last
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adaptome.core.errors import RecipeError
from adaptome.core.files import write_atomic
from adaptome.data import load_splits
from adaptome.data.folds import fold_names
from adaptome.recipe import Recipe, load_recipe
from adaptome.tasks import get_task
from adaptome.training.runs import run

FOLDS = "folds.json"


@dataclass(frozen=True)
class FoldsResult:
    """What the runs gave.

    Attributes:
        folder: the recipe's output folder.
        folds: fold -> its metrics on its test split.
        mean, deviation: of every metric over the folds; the deviation is the sample's.
        trainable_parameters: of one run.
        notes: what preparing the data changed, told once.
    """

    folder: str
    folds: dict[str, dict[str, float]]
    mean: dict[str, float]
    deviation: dict[str, float]
    trainable_parameters: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of folds.json."""
        return asdict(self)


def run_folds(
    recipe: Recipe | str | Path,
    callbacks: Sequence[TrainerCallback] | None = None,
    tell: Callable[[str], None] | None = None,
) -> FoldsResult:
    """Train once for every fold as the test fold.

    Args:
        recipe: a recipe, or the path of one.
        callbacks: of each run, as `run` takes them.
        tell: is given a line before each run.

    Raises:
        RecipeError: the recipe has no `data.folds`, or fixes what changes from run to run.
        and whatever `run` raises.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folds = recipe.data.folds
    if folds is None:
        raise RecipeError("the data has no folds: say which column they are, e.g. data.folds.column=fold.")
    if folds.test is not None or folds.validation not in (None, "next"):
        raise RecipeError(
            "data.folds: each fold is the test fold in turn; leave out data.folds.test, and let data.folds.validation be "
            "next or unset."
        )
    if recipe.evaluation.split not in (None, "test"):
        raise RecipeError(
            f"evaluation.split={recipe.evaluation.split}: the mean over the folds is of the test split."
        )
    names, results = _names(recipe), {}
    for number, name in enumerate(names, 1):
        if tell is not None:
            tell(f"fold {name} ({number} of {len(names)})")
        results[name] = run(_with_fold(recipe, name), callbacks)
    scores = {name: result.metrics for name, result in results.items()}
    keys = list(next(iter(scores.values())))
    made = FoldsResult(
        recipe.output.folder,
        scores,
        {key: statistics.fmean(found[key] for found in scores.values()) for key in keys},
        {key: statistics.stdev(found[key] for found in scores.values()) for key in keys},
        next(iter(results.values())).trainable_parameters,
        list(dict.fromkeys(note for result in results.values() for note in result.notes)),
    )
    write_atomic(Path(recipe.output.folder) / FOLDS, json.dumps(made.to_dict(), indent=1))
    return made


def _names(recipe: Recipe) -> list[str]:
    """The folds there are."""
    task = get_task(recipe.task.name, **recipe.task.settings)
    data = recipe.data.model_copy(update={"folds": None, "validation_fraction": 0.0, "test_fraction": 0.0})
    splits = load_splits(
        **data.model_dump(), prefer=task.prefer, texts=task.texts, files=task.files, chats=task.chats
    )
    assert recipe.data.folds is not None
    return fold_names(splits["train"], recipe.data.folds.column)


def _with_fold(recipe: Recipe, fold: str) -> Recipe:
    """The recipe with this test fold, and a folder of its own."""
    assert recipe.data.folds is not None
    data = recipe.data.model_copy(update={"folds": recipe.data.folds.model_copy(update={"test": fold})})
    output = recipe.output.model_copy(update={"folder": str(Path(recipe.output.folder) / f"fold-{fold}")})
    return recipe.model_copy(update={"data": data, "output": output})
