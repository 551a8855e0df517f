"""Data that the project makes itself, for demonstrations without a network; one file each, found by its registration alone.

    data: made:family-town                  # or {name: made:family-town, split_seed: 3}

    @maker("family-town")
    def family_town(seed: int) -> dict[str, Table]: ...      # tables by split: train, and validation and test where it makes them

The same seed (`data.split_seed`) makes the same data.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Table

#: what a data set's name begins with to be made
PREFIX = "made:"
Maker = Callable[[int], dict[str, Table]]
_MAKERS: dict[str, Maker] = {}


def maker(name: str) -> Callable[[Maker], Maker]:
    """Register a maker of data under `name`."""

    def put(make: Maker) -> Maker:
        _MAKERS[name] = make
        return make

    return put


def makers() -> dict[str, Maker]:
    """All registered makers by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_MAKERS.items()))


def make(name: str, seed: int) -> dict[str, Table]:
    """The tables of a data set that is made, by split.

    Args:
        name: with the prefix.

    Raises:
        DataError: there is none of this name; names the nearest.
    """
    known, wanted = makers(), name.removeprefix(PREFIX)
    if wanted not in known:
        raise DataError(
            f"data.name={name!r}: no data of this name is made.{did_you_mean(wanted, known)} There are: {', '.join(PREFIX + k for k in known)}."
        )
    return known[wanted](seed)
