"""The rows of a comparison, and the recipe of each of their runs: methods, of several budgets, in several variants."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from adaptome.core.errors import RecipeError
from adaptome.recipe import ComparedMethod, MethodSection, Recipe, VariantSection, load_recipe


def sections_of(recipe: Recipe) -> dict[str, ComparedMethod]:
    """The rows of a recipe's comparison by their names: its methods, of several budgets, in several variants."""
    assert recipe.compare is not None
    return labelled(varied(sized(recipe.compare.methods, recipe.compare.budget), recipe.compare.variants))


def sized(
    methods: Sequence[ComparedMethod], budget: int | str | list[int | str] | None
) -> list[ComparedMethod]:
    """The rows: of several budgets each method has a row of its own, but one whose size is its own."""
    if not isinstance(budget, list):
        return [m if m.budget is not None else m.model_copy(update={"budget": budget}) for m in methods]
    found = []
    for method in methods:
        if method.budget is not None:
            found.append(method)
            continue
        for one in budget:
            label = f"{method.label or method.name} @ {one}"
            found.append(method.model_copy(update={"budget": one, "label": label}))
    return found


def varied(methods: Sequence[ComparedMethod], variants: Sequence[VariantSection]) -> list[ComparedMethod]:
    """Every method in every variant; one method's rows are called by the variants alone."""
    if not variants:
        return list(methods)
    return [
        method.model_copy(
            update={
                "label": variant.label
                if len(methods) == 1
                else f"{method.label or method.name}, {variant.label}",
                "set": {**method.set, **variant.set},
            }
        )
        for method in methods
        for variant in variants
    ]


def labelled(methods: Sequence[ComparedMethod]) -> dict[str, ComparedMethod]:
    """The rows by their names, of which no two may share a folder."""
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


def method_of(section: ComparedMethod) -> MethodSection:
    """A row's method as one of a recipe's `methods`."""
    own = section.model_dump(exclude={"label", "learning_rate", "budget", "set"}, exclude_unset=True)
    return MethodSection.model_validate({**own, "budget": section.budget})


def recipe_of(
    recipe: Recipe, label: str, section: ComparedMethod, seed: int, rate: float | None = None
) -> Recipe:
    """The recipe of one run: this method alone, with this seed, in a folder of its own."""
    rate = rate or section.learning_rate or recipe.training.learning_rate
    folder = Path(recipe.output.folder) / _folder(label) / f"seed-{seed}"
    made = recipe.model_copy(
        update={
            "methods": [method_of(section)],
            "training": recipe.training.model_copy(update={"seed": seed, "learning_rate": rate}),
            "output": recipe.output.model_copy(update={"folder": str(folder)}),
            "compare": None,
        }
    )
    seeded = recipe.compare.seeded if recipe.compare is not None else []
    settings = {**section.set, **dict.fromkeys(seeded, seed)}
    if not settings:
        return made
    changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_recipe(made.model_dump(mode="json", exclude_defaults=True), changes)
