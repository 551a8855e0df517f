"""The systems of published papers: what each does, and what of it is here.

What cannot be computed stands in `systems.yaml`. Recipes are found by the patterns there, tasks and further methods by the recipes, so
a recipe that is added shows up by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

import yaml

from adaptome.core.errors import RecipeError, did_you_mean
from adaptome.recipe.shipped import ShippedRecipe, shipped_recipes


@dataclass(frozen=True)
class System:
    """A paper's system.

    Args:
        name: its short name here.
        title: what the paper calls it.
        paper: arXiv number.
        does: what it does, in a sentence without the full stop.
        own: methods of the paper, by their registered names.
        patterns: of its recipes' names.
        needs: what its own data and weights are.
        claim: a script that checks the paper's claim in miniature, from the repository's root.
    """

    name: str
    title: str
    paper: str
    does: str
    needs: str
    own: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    claim: str | None = None

    def recipes(self) -> dict[str, ShippedRecipe]:
        """Its recipes by name."""
        return {
            name: recipe
            for name, recipe in shipped_recipes().items()
            if any(fnmatchcase(name, pattern) for pattern in (*self.patterns, f"{self.name}-demo"))
        }

    def about(self) -> dict[str, Any]:
        """As JSON values: with the recipes of the paper, the demonstrations, tasks, methods, and what runs without network."""
        recipes = self.recipes()
        told = [recipe.about() for recipe in recipes.values()]
        demos = [name for name in recipes if name.endswith("-demo")]
        methods = list(dict.fromkeys([*self.own, *(m for one in told for m in one["methods"])]))
        offline = [*(f"adaptome {one['command']} {one['name']}" for one in told if one["name"] in demos), *([f"python {self.claim}"] if self.claim else [])]  # fmt: skip
        return {
            "name": self.name,
            "title": self.title,
            "paper": f"arXiv:{self.paper}",
            "does": self.does,
            "methods": methods,
            "tasks": list(dict.fromkeys(one["task"] for one in told)),
            "recipes": [name for name in recipes if name not in demos],
            "demos": demos,
            "offline": offline,
            "needs": self.needs,
            "state": "recipes" if recipes else "method" if methods else "not yet",
        }


@cache
def systems() -> dict[str, System]:
    """Every system by its name, in alphabetical order."""
    file = resources.files("adaptome").joinpath("recipe/systems.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    made = {}
    for name, told in sorted(content.items()):
        own, patterns = (tuple(told.pop(key, ())) for key in ("methods", "recipes"))
        made[name] = System(name, own=own, patterns=patterns, **told)
    return made


def get_system(name: str) -> System:
    """The system with this name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    known = systems()
    if name not in known:
        raise RecipeError(
            f"no system is called {name!r}.{did_you_mean(name, known)}\n  `adaptome systems` lists them."
        )
    return known[name]


def system_of(recipe: str) -> str | None:
    """The system that a recipe of the package belongs to; None where it stands alone."""
    return next((name for name, system in systems().items() if recipe in system.recipes()), None)
