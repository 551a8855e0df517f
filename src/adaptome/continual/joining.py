"""Several data sets as the tasks of one stream, and the names of labels that only look the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from adaptome.continual.stream import Part, Stream
from adaptome.core.errors import DataError
from adaptome.data import Splits
from adaptome.data.splits import Split, Table
from adaptome.tasks.labels import known_names, label_name

LABEL = "label"


def joined(named: Sequence[tuple[str, Splits]], test: str) -> tuple[Splits, Stream]:
    """Several data sets as one, and the stream of them.

    Args:
        named: a name and the splits of each, which have the same columns.
        test: the split to score on.

    Raises:
        DataError: there is none, two have one name, one has no such split, or their columns differ.
    """
    if not named:
        raise DataError("continual.stream: the stream is empty. Name the data of one task or more.")
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"continual.stream: two tasks are called {twice[0]!r}.")
    rows: dict[str, list[tuple[int, ...]]] = {}
    made: dict[str, Split] = {}
    for split in ("train", test):
        parts = []
        for name, splits in named:
            if split not in splits:
                raise DataError(f"continual.stream: the data of task {name!r} has no {split} split.")
            parts.append(splits[split])
        made[split], rows[split] = _concatenated(parts, names)
    tasks = tuple(Part(name, rows["train"][n], rows[test][n]) for n, name in enumerate(names))
    notes = [note for _, splits in named for note in splits.notes]
    return Splits(made, notes), Stream(tasks, "domain").with_rows()


def own_labels(splits: Splits, stream: Stream, test: str) -> Splits:
    """The splits with each label called '<task>: <label>', so that equal names in two tasks are two labels.

    Raises:
        DataError: the rows have no column `label`.
    """
    made = dict(splits)
    for split, rows_of in (("train", "train"), (test, "test")):
        splits.require(LABEL)
        names = _label_names(splits[split].rows)
        for part in stream.parts:
            for row in getattr(part, rows_of):
                names[row] = f"{part.name}: {names[row]}"
        made[split] = replace(splits[split], rows=_with_labels(splits[split].rows, names))
    return Splits(made, splits.notes)


def _concatenated(parts: Sequence[Split], names: Sequence[str]) -> tuple[Split, list[tuple[int, ...]]]:
    first, origins, rows, at = set(parts[0].rows.column_names), [], [], 0
    tables: list[Table] = []
    for name, part in zip(names, parts, strict=True):
        if set(part.rows.column_names) != first:
            raise DataError(
                f"continual.stream: task {name!r} has the columns {', '.join(sorted(part.rows.column_names))}; "
                f"{names[0]!r} has {', '.join(sorted(first))}."
            )
        origins.append(part.origin + np.array([len(tables), 0]))
        tables += part.tables
        rows.append(tuple(range(at, at + len(part))))
        at += len(part)
    whole = datasets.concatenate_datasets(_alike([part.rows for part in parts], names))
    return Split(whole, tables, np.concatenate(origins)), rows


def _alike(rows: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Tables whose columns have the same types: labels are written out where data sets name or number them otherwise."""
    if LABEL in rows[0].column_names and any(own.features[LABEL] != rows[0].features[LABEL] for own in rows):
        rows = [_with_labels(own, _label_names(own)) for own in rows]
    for name, own in zip(names, rows, strict=True):
        for column, kind in own.features.items():
            if kind != rows[0].features[column]:
                raise DataError(
                    f"continual.stream: the column {column!r} of task {name!r} is {kind}; that of {names[0]!r} is {rows[0].features[column]}."
                )
    return list(rows)


def _label_names(rows: Any) -> list[str]:
    known = known_names(rows.features[LABEL])
    return [label_name(value, known) for value in rows.with_format(None)[LABEL]]


def _with_labels(rows: Any, names: list[str]) -> Any:
    return rows.remove_columns(LABEL).add_column(LABEL, names)
