"""Settings given as KEY=VALUE on the command line."""

from __future__ import annotations

import json
from typing import Any

import typer


def read_settings(pairs: list[str] | None) -> dict[str, Any]:
    """`r=8` as {'r': 8}: a value is read as JSON where it is, else as text."""
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="--set")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings
