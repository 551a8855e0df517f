"""Registries of the parts a recipe names: tasks, objectives, composite models. Each part is found by its registration alone.

    TASKS = Parts("task", "adaptome.tasks")

    @TASKS.register("text-classification")
    class TextClassification(Task): ...

    TASKS.get("text-classification")        # the class, or a RecipeError that names the nearest

Parts of other packages register themselves the same way, in modules named under the entry point of the package's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from adaptome.core.discovery import import_all
from adaptome.core.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

P = TypeVar("P")
Settings = TypeVar("Settings", bound="BaseModel")


class Parts(Generic[P]):
    """The parts of one kind, by name.

    Args:
        kind: what a part is called in messages.
        package: its modules hold the parts; it names the entry point of other packages' parts too.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._known: dict[str, type[P]] = {}

    def register(self, name: str) -> Callable[[type[P]], type[P]]:
        """Register a class under `name`, which becomes its attribute."""

        def put(part: type[P]) -> type[P]:
            part.name = name  # type: ignore[attr-defined]
            self._known[name] = part
            return part

        return put

    def all(self) -> dict[str, type[P]]:
        """Every registered part, by name in alphabetical order."""
        import_all(self.package)
        for point in entry_points(group=self.package):
            if point.name not in self._known:
                point.load()
        return dict(sorted(self._known.items()))

    def get(self, name: str) -> type[P]:
        """The part registered as `name`.

        Raises:
            RecipeError: there is none; names the nearest.
        """
        known = self.all()
        if name not in known:
            raise RecipeError(
                f"{self.kind} {name!r} is not known.{did_you_mean(name, known)} There are: {', '.join(known)}."
            )
        return known[name]


def checked(settings: type[Settings], given: Mapping[str, Any], key: str, name: str) -> Settings:
    """Settings of a part, validated.

    Args:
        settings: the pydantic model that describes them.
        key: where they stand in a recipe, for messages: 'task'.
        name: the part they are of.

    Raises:
        RecipeError: a setting that the part does not have, with the nearest it has, or a value that it does not admit.
    """
    from pydantic import ValidationError

    try:
        return settings(**given)
    except ValidationError as error:
        raise RecipeError(_explain(settings, error, key, name)) from error


def _explain(settings: type[Any], error: Any, key: str, name: str) -> str:
    known, lines = list(settings.model_fields), []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(place, known)
            hint = hint or (f" Its options: {', '.join(known)}." if known else " It has no options.")
            lines.append(f"unknown key '{key}.{place}' for {name}.{hint}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            where = f"{key}.{place}={problem['input']!r}" if place else f"{key} ({name})"
            lines.append(f"{where}: {said[0].lower()}{said[1:]}.")
    return "\n  ".join(lines)
