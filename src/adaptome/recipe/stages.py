"""A recipe with stages as the recipes of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptome.core.errors import RecipeError
from adaptome.recipe.load import load_recipe
from adaptome.recipe.schema import Recipe, StageSection

#: what a stage cannot change
_FIXED = ("stages", "compare", "search", "output", "start", "title", "choose")


def stages_of(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """The folder and the recipe of every stage, in order.

    A stage's sections are laid over the recipe's, key by key; one that names another task, model, data set, list of methods or
    of objectives takes the place of the recipe's. Its folder, `<number>-<name>`, is in the recipe's.

    Raises:
        RecipeError: a section that is not valid, or a start that does not go with the stage's methods.
    """
    shared = recipe.model_dump(mode="json", exclude_defaults=True, exclude={*_FIXED})
    made: list[tuple[str, Recipe]] = []
    for number, stage in enumerate(recipe.stages, 1):
        where = f"stages.{number - 1} ({stage.name})"
        own = {key: value for key, value in stage.settings.items()}
        for key in _FIXED:
            if key in own:
                raise RecipeError(f"{where}: {key!r} belongs to the recipe, not to a stage.")
        if "method" in own:
            own["methods"] = [own.pop("method")]
        name = f"{number}-{stage.name}"
        content = {key: _over(shared.get(key), own.get(key, shared.get(key))) for key in {**shared, **own}}
        content["output"] = {**recipe.output.model_dump(), "folder": str(Path(recipe.output.folder) / name)}
        content["title"] = f"{recipe.title or recipe.task.name}: {stage.name}"
        augmentation = content.get("augmentation")
        if isinstance(augmentation, dict):
            folders = {
                Path(earlier.output.folder).name.partition("-")[2]: earlier.output.folder
                for _, earlier in made
            }
            teacher = augmentation.get("teacher")
            content["augmentation"] = {**augmentation, "teacher": folders.get(str(teacher), teacher)}
        if made:
            content |= _started(stage, own, content, made[-1][1], where)
        elif stage.start not in (None, "base"):
            raise RecipeError(f"{where}: start={stage.start}, and no stage is before it.")
        try:
            made.append((name, load_recipe(content)))
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    return made


def _started(
    stage: StageSection, own: Mapping[str, Any], content: Mapping[str, Any], before: Recipe, where: str
) -> dict[str, Any]:
    """`start`, and the methods where they come from the stage before."""
    start = stage.start or ("adapter" if "methods" not in own else None)
    if start is None:
        raise RecipeError(
            f"{where} names methods of its own: say what it starts from.\n"
            "  start: merged (the stage before, merged), frozen (its adapters stay, held), or base (nothing of it)."
        )
    if start == "base":
        return {}
    told = {"start": {"run": before.output.folder, "how": start}}
    if start == "merged":
        return told
    earlier = [section.model_dump(mode="json", exclude_defaults=True) for section in before.methods]
    if start == "adapter":
        if "methods" in own:
            raise RecipeError(
                f"{where}: start=adapter goes on with the stage before's methods; leave its own out, or start=frozen."
            )
        return {**told, "methods": earlier}
    if "methods" not in own:
        raise RecipeError(
            f"{where}: start=frozen trains nothing of the stage before; name a method of its own."
        )
    for index, section in enumerate(earlier):
        section.update(
            frozen=True, adapter=section.get("adapter") or ("default" if index == 0 else section["name"])
        )
    new = [{"name": m} if isinstance(m, str) else dict(m) for m in content["methods"]]
    new[0].setdefault("adapter", stage.name)
    return {**told, "methods": [*earlier, *new]}


def _over(below: Any, above: Any) -> Any:
    """A section of a stage over the recipe's: `task: x` is {name: x}; another name, or another composite model, takes its place."""
    if isinstance(below, dict) and isinstance(above, str) and "name" in below:
        above = {"name": above}
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if any(key in above and above[key] != below.get(key) for key in ("name", "composite")):
        return above
    if "from_config" in above and "composite" in below:  # a plain one in its place
        return above
    return {**below, **above}
