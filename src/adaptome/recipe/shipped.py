"""The recipes that come with adaptome, by name.

They are the files `adaptome/recipes/<task>/<name>.yaml`; a file is found by being there. Each opens with a comment: what
it is for, in a sentence, and the commands that run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from adaptome.core.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package.

    Args:
        name: what `adaptome train` takes in place of a path.
        text: the file's content.
    """

    name: str
    text: str

    def purpose(self) -> str:
        """What it is for: the file's first line."""
        return self.text.partition("\n")[0].removeprefix("# ")

    def about(self) -> dict[str, Any]:
        """Name, purpose, task, model and methods (those it compares, where it compares)."""
        content = yaml.safe_load(self.text)
        stages = [stage["method"] for stage in content.get("stages", ()) if "method" in stage]
        own = (
            content["methods"] if "methods" in content else [content["method"]] if "method" in content else []
        )
        given = content["compare"]["methods"] if "compare" in content else [*own, *stages]
        streams = any("continual" in part for part in (content, *content.get("stages", ())))
        # the last stage is what comes of it; a section of it without a name only changes the recipe's
        last = content["stages"][-1] if content.get("stages") else {}
        ends = content | {key: section for key, section in last.items() if _name(section) != "None"}
        return {
            "name": self.name,
            "purpose": self.purpose(),
            "command": "compare" if "compare" in content else "continual" if streams else "train",
            "task": _name(ends["task"]),
            "model": _name(ends["model"]),
            "methods": list(dict.fromkeys(map(_name, given))),
        }


def _name(section: Any) -> str:
    if not isinstance(section, dict):
        return str(section)
    return str(section.get("name", section.get("composite")))


@cache
def shipped_recipes() -> dict[str, ShippedRecipe]:
    """Every recipe of the package by its name; those of a task stand together."""
    root = resources.files("adaptome").joinpath("recipes")
    tasks = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda f: f.name)
    files = [f for task in tasks for f in sorted(task.iterdir(), key=lambda f: f.name)]
    recipes = [
        ShippedRecipe(f.name.removesuffix(".yaml"), f.read_text(encoding="utf-8"))
        for f in files
        if f.name.endswith(".yaml")
    ]
    return {recipe.name: recipe for recipe in recipes}


def shipped_recipe(name: str) -> ShippedRecipe:
    """The recipe of the package with this name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    known = shipped_recipes()
    if name not in known:
        raise RecipeError(
            f"no recipe called {name!r} comes with adaptome.{did_you_mean(name, known)}\n"
            "  `adaptome recipes` lists them; a recipe of your own is given by its path."
        )
    return known[name]
