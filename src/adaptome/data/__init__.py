"""Reading data: files, folders, archives and hub data sets become splits whose rows know their line.

Example:

    splits = load_splits(train="train.jsonl", columns={"text": "sentence"})
    splits["train"].rows          # a datasets.Dataset
    splits["validation"].where(3) # "train.jsonl, line 17"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptome.data.load import load_splits
    from adaptome.data.splits import Split, Splits, Table

__all__ = ["Split", "Splits", "Table", "load_splits"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: not every part of this folder needs `datasets`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "load" if name == "load_splits" else "splits"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
