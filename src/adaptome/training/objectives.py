"""A recipe's `objective` as terms, with the teachers they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from adaptome.core.errors import RecipeError
from adaptome.objectives import Objective, Term, Terms, terms_of
from adaptome.recipe import Recipe
from adaptome.tasks import Task


def installed(recipe: Recipe, model: nn.Module) -> tuple[list[Term], list[str]]:
    """The recipe's terms, their own trained parts put on the model, and what `ad.attach(train=...)` is told of these."""
    terms = terms_of(recipe.objective)
    return terms, Terms.install(model, terms)


def check_end(recipe: Recipe, terms: Sequence[Term], validated: bool) -> None:
    """What a term that follows the trained tensors does not go with: shards of them, and an end with other ones.

    Args:
        validated: whether there is a split by which a best checkpoint is chosen.

    Raises:
        RecipeError: it is to.
    """
    follows = next((t.name for t in terms if type(t.objective).stepped is not Objective.stepped), None)
    if follows is not None and recipe.training.fsdp:
        raise RecipeError(
            f"the objective {follows!r} follows whole tensors, which a sharded run has not: leave training.fsdp out."
        )
    named = next((term.name for term in terms if term.objective.replaces), None)
    if named is not None and recipe.training.ema is not None:
        raise RecipeError(
            f"the objective {named!r} ends with its teacher, training.ema with its own mean of the same: leave training.ema out, "
            "or let the objective keep the student (keep: student)."
        )
    if named is not None and validated and recipe.training.keep_best:
        raise RecipeError(
            f"the objective {named!r} ends with its teacher, training.keep_best with the best evaluation: write training.keep_best=false, "
            "or let the objective keep the student (keep: student)."
        )


def assembled(
    recipe: Recipe, task: Task, processor: Any, model: nn.Module, terms: Sequence[Term]
) -> Terms | None:
    """The loss of a model with its adapters; None for the model's own alone."""
    if not terms:
        return None
    wanted = {name for term in terms if (name := term.objective.needs().teacher) not in (None, "base")}
    return Terms(model, terms, {str(name): _teacher(recipe, task, processor, str(name)) for name in wanted})


def _teacher(recipe: Recipe, task: Task, processor: Any, name: str) -> nn.Module:
    """A frozen model, loaded as the task loads its own, on the device of the run."""
    spec: Any = recipe.model.model_copy(update={"name": name, "revision": None, "from_config": None})
    known = list(task.new_modules)
    teacher = task.load_model(spec, processor)
    task.new_modules = known
    return teacher.eval().requires_grad_(False)
