"""A recipe's `objective` as terms, with the teachers they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from adaptome.objectives import Term, Terms, terms_of
from adaptome.recipe import Recipe
from adaptome.tasks import Task


def installed(recipe: Recipe, model: nn.Module) -> tuple[list[Term], list[str]]:
    """The recipe's terms, their own trained parts put on the model, and what `ad.attach(train=...)` is told of these."""
    terms = terms_of(recipe.objective)
    return terms, Terms.install(model, terms)


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
