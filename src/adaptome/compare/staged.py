"""Recipes with stages where runs are compared or searched over: the first stages once, the rest on the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adaptome.recipe import Recipe, stages_of
from adaptome.training.stages import run_stages

Tell = Callable[[str], None]


def carry_out_first(recipe: Recipe, callbacks: Sequence[Any] | None = None, tell: Tell | None = None) -> None:
    """Carry out all stages but the last; finished ones are taken as they are."""
    if recipe.stages[:-1]:
        first = {
            "stages": recipe.stages[:-1],
            "search": None,
            "compare": None,
            "training": recipe.training.model_copy(update={"resume": True}),
        }
        run_stages(recipe.model_copy(update=first), callbacks, tell)


def last_stage(recipe: Recipe, callbacks: Sequence[Any] | None = None, tell: Tell | None = None) -> Recipe:
    """The recipe whose runs are compared: of one with stages its last, in the recipe's folder, the first ones carried out."""
    if not recipe.stages:
        return recipe
    last = stages_of(recipe)[-1][1]
    carry_out_first(recipe, callbacks, tell)
    return last.model_copy(update={"compare": recipe.compare, "output": recipe.output, "title": recipe.title})
