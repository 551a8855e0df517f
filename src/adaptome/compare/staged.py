"""Recipes with stages where runs are compared or searched over: the first stages once, the rest on the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptome.recipe import Recipe, stages_of
from adaptome.training.stages import carry_out

Tell = Callable[[str], None]


def carry_out_first(recipe: Recipe, callbacks: Sequence[Any] | None = None, tell: Tell | None = None) -> None:
    """Carry out all stages but the last, in the folders that `adaptome train` has them in; finished ones are taken as they are."""
    if recipe.stages[:-1]:
        carry_out(stages_of(recipe)[:-1], Path(recipe.output.folder), True, callbacks, tell)


def last_stage(recipe: Recipe, callbacks: Sequence[Any] | None = None, tell: Tell | None = None) -> Recipe:
    """The recipe whose runs are compared: of one with stages its last, the first ones carried out; its runs in `compared/`."""
    if not recipe.stages:
        return recipe
    last = stages_of(recipe)[-1][1]
    carry_out_first(recipe, callbacks, tell)
    folder = Path(recipe.output.folder) / "compared"
    output = recipe.output.model_copy(update={"folder": str(folder)})
    return last.model_copy(update={"compare": recipe.compare, "output": output, "title": recipe.title})
