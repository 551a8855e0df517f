"""A stream: the tasks of a data set, or of several, in the order in which they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adaptome.continual.ordering import Order, arranged
from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data.splits import Split

#: class: each task brings labels of its own; domain: the labels stay, the data changes
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

    def with_rows(self) -> Stream:
        """Itself, every task having rows to learn and to be scored on.

        Raises:
            DataError: it has no task, or one has no rows.
        """
        if not self.parts:
            raise DataError("continual.stream: the stream is empty. It needs one task or more.")
        for part in self.parts:
            for split in ("train", "test"):
                if not getattr(part, split):
                    raise DataError(f"continual.stream: task {part.name!r} has no {split} rows.")
        return self

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
    _check_single(train, test)
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
    return Stream(tuple(parts), "class", tuple(int(n) for n in train)).with_rows()


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


def by_column(
    train: Split, test: Split, column: str, order: Sequence[Any] | Order = "given", seed: int = 0
) -> Stream:
    """Tasks that are the values of a column: domains, sources, dates.

    Args:
        order: the values in order, or how they are arranged (see `ordering`); given: as they first come in train.
        seed: draws a random order.

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
    values = (
        arranged(there, order, seed, train, column) if isinstance(order, str) else [str(v) for v in order]
    )
    if sorted(values) != sorted(there):
        odd = sorted(set(values) ^ set(there)) or [v for v in values if values.count(v) > 1]
        raise RecipeError(
            f"continual.stream.order and the values of {column!r} differ in {', '.join(odd)}.\n  Values in train: {', '.join(there)}."
        )
    rows = [{v: tuple(i for i, own in enumerate(of) if own == v) for v in values} for of in found]
    return Stream(tuple(Part(v, rows[0][v], rows[1][v]) for v in values), "domain").with_rows()


def with_classes(stream: Stream, train: Sequence[Any], test: Sequence[Any], names: Sequence[str]) -> Stream:
    """The tasks of a stream as such that bring the labels of their training rows.

    Args:
        train, test: label numbers of all rows.
        names: of the labels.

    Raises:
        DataError: rows with several labels, a label in two tasks, or one that a task is scored on and does not bring.
    """
    _check_single(train, test)
    where: dict[int, str] = {}
    parts = []
    for part in stream.parts:
        own = tuple(sorted({int(train[row]) for row in part.train}))
        for label in own:
            if label in where:
                raise DataError(
                    f"continual.stream: the label {names[label]!r} is in task {where[label]!r} and in task {part.name!r}.\n"
                    "  Where they are to be told apart: continual.stream.labels=own. Where tasks share them: continual.stream.labels=shared."
                )
            where[label] = part.name
        for row in part.test:
            if int(test[row]) not in own:
                raise DataError(
                    f"continual.stream: task {part.name!r} is scored on rows with the label {names[int(test[row])]!r}, which it does not bring."
                )
        parts.append(Part(part.name, part.train, part.test, own))
    return Stream(tuple(parts), "class", tuple(int(n) for n in train))


def _check_single(*splits: Sequence[Any]) -> None:
    if any(not isinstance(n, int | np.integer) for labels in splits for n in labels):
        raise DataError(
            "continual.stream: tasks that bring labels need one label for each row; here rows have several."
        )
