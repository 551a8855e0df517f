"""Where parts are found that register themselves when their module is imported: packages of this library, and entry points of others.

The library's root says where the kinds live that the core asks for (`home`), so that this floor names none that stand above it.
What is of the kind 'methods' is looked for in the entry-point group `adaptome.methods` too. Parts of systems have a registry
for each kind, in its own package (`core/parts.py`).
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points

_HOMES: dict[str, list[str]] = {}
_DISCOVERED: set[str] = set()


def home(kind: str, package: str) -> None:
    """Say that parts of this kind register themselves when the modules of a package are imported."""
    _HOMES.setdefault(kind, []).append(package)


def discover(kind: str) -> None:
    """Import all that may register a part of this kind; done once, which torch.compile can see (a cached function it would trace)."""
    if kind in _DISCOVERED:
        return
    for package in _HOMES.get(kind, []):
        import_all(package)
    for point in entry_points(group=f"adaptome.{kind}"):
        point.load()
    _DISCOVERED.add(kind)


def import_all(package: str) -> None:
    """Import every module of a package, and of the packages in it."""
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        importlib.import_module(module.name)
