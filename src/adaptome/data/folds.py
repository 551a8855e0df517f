"""Folds: data sets that come with a column of fold numbers, such as ESC-50 (5) and UrbanSound8K (10).

    by_fold(splits, column="fold", test=1, validation="next")   # ESC-50: 3 folds train, 1 validates, 1 tests
    by_fold(splits, column="fold", test=1)                      # UrbanSound8K: validation is cut from the 9 others

The test fold is never anything but the test split: what validates comes from the others, so that the best epoch is
not chosen on what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split

Fold = str | int


def by_fold(
    splits: Mapping[str, Split], column: str, test: Fold | None = None, validation: Fold | None = None
) -> dict[str, Split]:
    """The one split there is, parted by its folds; without `validation`, that split is left to be cut from train.

    Args:
        column: of the fold numbers or names.
        test: the fold that is tested on; None for the first.
        validation: the fold that validates; "next" for the one after the test fold, cyclically.

    Raises:
        DataError: splits of another kind, no such column, no such fold, or too few of them.
    """
    if set(splits) != {"train"}:
        raise DataError(
            f"data.folds: the data has its own splits ({', '.join(splits)}); folds part one that is whole. "
            "Leave out data.folds, or give data.train alone."
        )
    whole = splits["train"]
    of_row = [str(fold) for fold in _column(whole, column)]
    names = fold_names(whole, column)
    test_name = names[0] if test is None else _named(whole, "test", test, names)
    parts = {"test": test_name}
    if validation is not None:
        at = (names.index(test_name) + 1) % len(names)
        parts["validation"] = (
            names[at] if validation == "next" else _named(whole, "validation", validation, names)
        )
        if parts["validation"] == test_name:
            raise DataError(f"data.folds: fold {test_name} cannot be test and validation at once.")
    if len(names) <= len(parts):
        raise DataError(
            f"{whole.source}: column {column!r} has {len(names)} folds; {' and '.join(parts)} leave none to train on."
        )
    rows = np.asarray(of_row)
    made = {split: whole.select(np.flatnonzero(rows == fold)) for split, fold in parts.items()}
    made["train"] = whole.select(np.flatnonzero(~np.isin(rows, list(parts.values()))))
    return made


def fold_names(split: Split, column: str) -> list[str]:
    """The folds of a split in order, numbers by their size.

    Raises:
        DataError: no such column.
    """
    names = {str(fold) for fold in _column(split, column)}
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _column(split: Split, column: str) -> list[Any]:
    there = split.rows.column_names
    if column not in there:
        raise DataError(
            f"{split.source}: data.folds.column={column!r}: no such column.{did_you_mean(column, there)} "
            f"Columns there: {', '.join(there)}."
        )
    return list(split.rows.with_format(None)[column])


def _named(split: Split, key: str, fold: Fold, names: list[str]) -> str:
    if str(fold) not in names:
        raise DataError(f"{split.source}: data.folds.{key}={fold!r}: the folds are {', '.join(names)}.")
    return str(fold)
