"""A recipe of several stages carried out: one run after another, each resumable, the next starting from the one before.

<output.folder>/
  1-<name>/, 2-<name>/   a run each (see `training.folder`)
  stages.json            every stage's result
  report.html            one page for all of them; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adaptome.core.errors import TrainingError
from adaptome.core.files import write_atomic
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.training.continual import run_continual
from adaptome.training.folder import METRICS, RECIPE, STAGES, last_checkpoint
from adaptome.training.page import write_report
from adaptome.training.runs import Result, run


@dataclass(frozen=True)
class StagesResult:
    """What the stages gave.

    Attributes:
        folder: the recipe's output folder.
        stages: name of a stage's folder -> its result, in order.
    """

    folder: str
    stages: dict[str, Result]

    @property
    def last(self) -> Result:
        """The result of the last stage."""
        return list(self.stages.values())[-1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of stages.json."""
        return {"folder": self.folder, "stages": [{"name": n, **asdict(r)} for n, r in self.stages.items()]}


def run_stages(
    recipe: Recipe | str | Path,
    callbacks: Sequence[TrainerCallback] | None = None,
    tell: Callable[[str], None] | None = None,
) -> StagesResult:
    """Carry out a recipe's stages.

    Killed at any point, the same call with `training.resume=true` goes on: finished stages are not run again, and the one that
    was cut off goes on from its last checkpoint.

    Args:
        recipe: a recipe with stages, its path, or the name of one that comes with adaptome.
        callbacks: of each run, as `run` takes them.
        tell: is given a line before each run.

    Raises:
        RecipeError: the recipe has no stages, or one of them is not valid; and whatever `run` raises.
        TrainingError: the folder holds a finished run, which neither resume nor overwrite is told of.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder, resume = Path(recipe.output.folder), bool(recipe.training.resume)
    stages = stages_of(recipe)
    if (folder / STAGES).is_file() and not resume and not recipe.output.overwrite:
        raise TrainingError(
            f"{folder} holds a finished run of {len(stages)} stages.\n  Choose another output.folder, or output.overwrite=true to start over."
        )
    if not resume:
        (folder / STAGES).unlink(missing_ok=True)
    results = carry_out(stages, folder, resume, callbacks, tell)
    made = StagesResult(str(folder), results)
    write_atomic(folder / RECIPE, recipe.to_yaml(full=True))
    write_atomic(folder / STAGES, json.dumps(made.to_dict(), indent=1))
    write_report([folder])
    return made


def carry_out(
    stages: Sequence[tuple[str, Recipe]],
    folder: Path,
    resume: bool,
    callbacks: Sequence[TrainerCallback] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Result]:
    """The result of each of these stages, of `stages_of`, in their folders under `folder`; with `resume` finished ones as they are."""
    results: dict[str, Result] = {}
    for number, (name, stage) in enumerate(stages, 1):
        if resume and (done := finished(folder / name)) is not None:
            results[name] = done
            continue
        if tell is not None:
            tell(f"stage {name} ({number} of {len(stages)})")
        going_on = resume and (last_checkpoint(folder / name) is not None or stage.continual is not None)
        training = stage.training.model_copy(update={"resume": going_on})
        output = stage.output.model_copy(
            update={"overwrite": stage.output.overwrite or (resume and not going_on)}
        )
        own = stage.model_copy(update={"training": training, "output": output})
        results[name] = run(own, callbacks) if own.continual is None else run_continual(own, callbacks, tell)
    return results


def finished(folder: Path) -> Result | None:
    """The result of a finished run; None where there is none."""
    if not (folder / METRICS).is_file():
        return None
    return Result(**json.loads((folder / METRICS).read_text(encoding="utf-8")))
