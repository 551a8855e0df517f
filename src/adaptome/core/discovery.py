"""Where parts that register themselves are found: packages of this library, and entry points of others.

A kind's own package says where it lives (`home`), or the library's root where the core asks for the kind: so this floor names
none that stand above it. What is of the kind 'methods' is looked for in the entry-point group `adaptome.methods` too.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points

_HOMES: dict[str, list[str]] = {}


def home(kind: str, package: str) -> None:
    """Say that parts of this kind register themselves when the modules of a package are imported."""
    _HOMES.setdefault(kind, []).append(package)


@functools.cache
def discover(kind: str) -> None:
    """Import all that may register a part of this kind; done once."""
    for name in _HOMES.get(kind, []):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    for point in entry_points(group=f"adaptome.{kind}"):
        point.load()
