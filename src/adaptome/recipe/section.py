"""What the sections of a recipe have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())


class OpenSection(Section):
    """A part whose further keys are the settings of what it names."""

    model_config = ConfigDict(extra="allow", validate_default=True, protected_namespaces=())

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that the schema leaves to the named task or method."""
        return dict(self.__pydantic_extra__ or {})


def named(value: Any) -> Any:
    """A section that is a name alone: {name: ...}."""
    return {"name": value} if isinstance(value, str) else value
