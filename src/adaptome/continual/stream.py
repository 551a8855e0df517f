"""A stream: the tasks of a data set, or of several, in the order in which they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np

from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data import Splits
from adaptome.data.splits import Split, Table

#: classes: each task brings labels of its own; domain: the labels stay, the data changes
Kind = Literal["class", "domain"]


@dataclass(frozen=True)
class Part:
    """One task of a stream.

    Args:
        name: for tables and folders.
        train, test: its rows in the data's splits.
        classes: the label numbers it brings; empty where the labels stay.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stream:
    """The tasks in order.

    Args:
        kind: whether each brings classes, or another domain.
        labels: of every training row, where each row has one number; else empty.
    """

    parts: tuple[Part, ...]
    kind: Kind
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise DataError("continual.stream: the stream is empty. It needs one task or more.")
        for part in self.parts:
            for split in ("train", "test"):
                if not getattr(part, split):
                    raise DataError(f"continual.stream: task {part.name!r} has no {split} rows.")

    def classes(self, numbers: Sequence[int]) -> list[int]:
        """The labels of several tasks, in the order they came."""
        return [c for n in numbers for c in self.parts[n].classes]


def by_labels(
    train: Sequence[Any],
    test: Sequence[Any],
    names: Sequence[str],
    size: int | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    order: Literal["given", "random"] = "given",
    seed: int = 0,
    overlap: bool = False,
) -> Stream:
    """Tasks that bring labels of their own.

    Args:
        train, test: label numbers of the rows.
        names: of the labels.
        size: labels a task; the last may have fewer.
        groups: labels of each task by name, in place of size.
        order: of the labels before they are grouped by size.
        seed: draws the random order.
        overlap: whether a label may come in more than one task.

    Raises:
        RecipeError: neither size nor groups, an unknown label, or one in two tasks.
        DataError: rows with several labels, or a task without rows.
    """
    if any(not isinstance(n, int | np.integer) for part in (train, test) for n in part):
        raise DataError("continual.stream: by=labels needs one label for each row; here rows have several.")
    if (size is None) == (groups is None):
        raise RecipeError("continual.stream: by=labels needs either size or groups.")
    if groups is None:
        assert size is not None
        numbers = np.random.default_rng(seed).permutation(len(names)) if order == "random" else range(len(names))  # fmt: skip
        ordered = [int(n) for n in numbers]
        chosen = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    else:
        chosen = [[_number(label, names) for label in group] for group in groups]
    _check_groups(chosen, names, overlap)
    parts = []
    for number, group in enumerate(chosen, 1):
        rows = [tuple(i for i, label in enumerate(of) if label in set(group)) for of in (train, test)]
        parts.append(Part(f"task-{number}", rows[0], rows[1], tuple(group)))
    return Stream(tuple(parts), "class", tuple(int(n) for n in train))


def _number(label: Any, names: Sequence[str]) -> int:
    if str(label) not in names:
        raise RecipeError(
            f"continual.stream.groups: there is no label {label!r}.{did_you_mean(str(label), names)}"
        )
    return list(names).index(str(label))


def _check_groups(groups: Sequence[Sequence[int]], names: Sequence[str], overlap: bool) -> None:
    where: dict[int, int] = {}
    for number, group in enumerate(groups, 1):
        if not group:
            raise RecipeError(f"continual.stream.groups: task {number} has no label.")
        for label in group:
            if label in where and (not overlap or where[label] == number):
                raise RecipeError(
                    f"continual.stream.groups: the label {names[label]!r} is in task {where[label]} and in task {number}.\n"
                    "  Leave it in one of them, or continual.stream.overlap=true."
                )
            where[label] = number


def by_column(train: Split, test: Split, column: str, order: Sequence[Any] | None = None) -> Stream:
    """Tasks that are the values of a column: domains, sources, dates.

    Args:
        order: the values in order; default: as they first come in train.

    Raises:
        DataError: no such column; RecipeError: a value of `order` that no row has, or one that `order` leaves out.
    """
    found = []
    for split in (train, test):
        if column not in split.rows.column_names:
            raise DataError(
                f"{split.source}: continual.stream.column={column!r} is no column.{did_you_mean(column, split.rows.column_names)}\n"
                f"  Columns there: {', '.join(split.rows.column_names)}."
            )
        found.append([str(value) for value in split.rows.with_format(None)[column]])
    there = list(dict.fromkeys(found[0]))
    values = there if order is None else [str(value) for value in order]
    if sorted(values) != sorted(there):
        odd = sorted(set(values) ^ set(there)) or [v for v in values if values.count(v) > 1]
        raise RecipeError(
            f"continual.stream.order and the values of {column!r} differ in {', '.join(odd)}.\n  Values in train: {', '.join(there)}."
        )
    rows = [{v: tuple(i for i, own in enumerate(of) if own == v) for v in values} for of in found]
    return Stream(tuple(Part(v, rows[0][v], rows[1][v]) for v in values), "domain")


def joined(named: Sequence[tuple[str, Splits]], test: str) -> tuple[Splits, Stream]:
    """Several data sets as one, and the stream of them.

    Args:
        named: a name and the splits of each, which have the same columns.
        test: the split to score on.

    Raises:
        DataError: there is none, one has no such split, or their columns differ.
    """
    if not named:
        raise DataError("continual.stream: the stream is empty. Name the data of one task or more.")
    rows: dict[str, list[tuple[int, ...]]] = {}
    made: dict[str, Split] = {}
    for split in ("train", test):
        parts = []
        for name, splits in named:
            if split not in splits:
                raise DataError(f"continual.stream: the data of task {name!r} has no {split} split.")
            parts.append(splits[split])
        made[split], rows[split] = _concatenated(parts, [name for name, _ in named])
    tasks = [Part(name, rows["train"][n], rows[test][n]) for n, (name, _) in enumerate(named)]
    return Splits(made, [note for _, splits in named for note in splits.notes]), Stream(
        tuple(tasks), "domain"
    )


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
    joined_rows = datasets.concatenate_datasets([part.rows for part in parts])
    return Split(joined_rows, tables, np.concatenate(origins)), rows
