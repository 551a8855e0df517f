"""A recipe of several stages carried out: one run after another, each resumable, the next starting from the one before.

<output.folder>/
  1-<name>/, 2-<name>/   a run each (see `training.folder`)
  stages.json            every stage's result
  report.html            one page for all of them; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adaptome.core.errors import TrainingError
from adaptome.core.files import write_atomic
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.tasks import get_task
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
        chosen: of the recipe's `choose` that which was best on validation; None without it.
        validation: what each of these reached there.
    """

    folder: str
    stages: dict[str, Result]
    chosen: str | None = None
    validation: dict[str, float] = field(default_factory=dict)

    @property
    def last(self) -> Result:
        """The result that stands for the run: the chosen stage's, else the last one's."""
        return self.stages[self.chosen] if self.chosen else list(self.stages.values())[-1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of stages.json."""
        told = {"folder": self.folder, "stages": [{"name": n, **asdict(r)} for n, r in self.stages.items()]}
        return {**told, "chosen": self.chosen, "validation": self.validation} if self.chosen else told


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
    made = StagesResult(str(folder), results, *_chosen(recipe, dict(stages), results))
    write_atomic(folder / RECIPE, recipe.to_yaml(full=True))
    write_atomic(folder / STAGES, json.dumps(made.to_dict(), indent=1))
    write_report([folder])
    return made


def _chosen(
    recipe: Recipe, stages: Mapping[str, Recipe], results: Mapping[str, Result]
) -> tuple[str | None, dict[str, float]]:
    """The stage of `choose` that was best on validation, the earlier where they are level, and what each reached."""
    reached: dict[str, float] = {}
    sign = 1.0
    for name in (n for n in results if n.partition("-")[2] in recipe.choose):
        own = stages[name]
        task = get_task(own.task.name, **own.task.settings)
        metric = f"eval_{own.training.metric or task.primary_metric}"
        sign = 1.0 if task.greater_is_better else -1.0
        told = [entry[metric] for entry in results[name].history if metric in entry]
        if not told:
            raise TrainingError(
                f"choose: the stage {name} was not scored on validation ({metric}), so nothing can be chosen."
            )
        reached[name] = max(told, key=lambda value: sign * value)
    return (max(reached, key=lambda name: sign * reached[name]) if reached else None), reached


def finished(folder: Path) -> Result | None:
    """The result of a finished run; None where there is none."""
    if not (folder / METRICS).is_file():
        return None
    return Result(**json.loads((folder / METRICS).read_text(encoding="utf-8")))
