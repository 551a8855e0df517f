"""Classes among which a picture is told: those of its data set, or of its half of them; and the scores by these groups.

few-shot      one group for each data set. Several are cross-data-set evaluation: `accuracy` is that of the set trained on, `transfer` the
              mean over the others
base-to-new   the classes of the set in their order, the first half (rounded up) base, the others new. Train and validation keep the base;
              of test each picture is told among its own half: HM = 2 b n / (b + n)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split
from adaptome.tasks.labels import known_names, label_name

BASE, NEW = "base", "new"
#: the data set of rows that name none
ONE = "data"


@dataclass(frozen=True)
class Group:
    """Classes among which pictures are told.

    Attributes:
        name: of the group, and `dataset` the one it is of.
        classes: their labels.
    """

    name: str
    dataset: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """What a split says of its pictures: of each its data set, its label, and the label's number where there is one."""

    datasets: list[str]
    labels: list[str]
    numbers: list[int] | None


def rows_of(split: Split) -> Rows:
    """The columns label, and dataset and number where there are such."""
    there, bare = split.rows.column_names, split.rows.with_format(None)
    known = known_names(split.rows.features["label"])
    values = list(bare["label"])
    datasets = [str(d) for d in bare["dataset"]] if "dataset" in there else [ONE] * len(split)
    labels = [label_name(value, known) for value in values]
    if known is not None:
        numbers: list[int] | None = [int(value) for value in values]
    else:
        numbers = [int(n) for n in bare["number"]] if "number" in there else None
    return Rows(datasets, labels, numbers)


def classes_of(rows: Sequence[Rows]) -> dict[str, list[str]]:
    """Data set -> its labels in order, by number where they have one, else by name; the sets in their own order."""
    order: dict[str, dict[str, Any]] = {}
    for split in rows:
        numbers = split.numbers or split.labels
        for dataset, label, number in zip(split.datasets, split.labels, numbers, strict=True):
            order.setdefault(dataset, {}).setdefault(label, number)
    found = {}
    for dataset, labels in order.items():
        whole = all(label.lstrip("-").isdigit() for label in labels)
        found[dataset] = sorted(labels, key=lambda label: int(label) if whole else labels[label])
    return found


def halves(dataset: str, classes: Sequence[str]) -> list[Group]:
    """Base and new classes.

    Raises:
        DataError: there is only one.
    """
    if len(classes) < 2:
        raise DataError(
            f"task.protocol=base-to-new: {dataset} has {len(classes)} class, and two are needed for a half each."
        )
    cut = (len(classes) + 1) // 2
    return [Group(BASE, dataset, tuple(classes[:cut])), Group(NEW, dataset, tuple(classes[cut:]))]


@dataclass(frozen=True)
class Places:
    """Where groups' classes stand among the columns of the logits."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for number, group in enumerate(self.groups):
            for label in group.classes:
                found[group.dataset, label] = (len(found), number)
        object.__setattr__(self, "_found", found)

    def of(self, split: Split, rows: Rows) -> tuple[list[int], list[int]]:
        """Column and group of each row.

        Raises:
            DataError: a label that none of the groups has; names its place and the nearest that is there.
        """
        found: Mapping[tuple[str, str], tuple[int, int]] = self._found  # type: ignore[attr-defined]
        made = []
        for row, key in enumerate(zip(rows.datasets, rows.labels, strict=True)):
            if key not in found:
                there = [label for dataset, label in found if dataset == key[0]]
                raise DataError(
                    f"{split.where(row)}: the class {key[1]!r} is not among the {len(there)} of {key[0]}."
                    f"{did_you_mean(key[1], there)}\n  Give all of them: task.classes, or task.classes=data for those of the data."
                )
            made.append(found[key])
        return [column for column, _ in made], [group for _, group in made]

    def column_groups(self) -> list[int]:
        """The group of each column."""
        return [number for number, group in enumerate(self.groups) for _ in group.classes]


def scored(
    guesses: np.ndarray, labels: np.ndarray, groups: np.ndarray, named: Sequence[Group], trained: int = 0
) -> dict[str, float]:
    """Shares of pictures told right: of the trained group, of each, and what the protocol makes of these.

    Args:
        guesses, labels, groups: [n], columns and groups.
        named: the groups. trained: the one that was trained on.
    """
    right = guesses == labels
    found = {
        group.name: float(right[groups == number].mean())
        for number, group in enumerate(named)
        if (groups == number).any()
    }
    own = found.get(named[trained].name)
    scores = {"accuracy": own if own is not None else float(np.mean(list(found.values())))}
    if len(named) == 1:
        return scores
    if NEW in found and named[trained].name == BASE:
        b, n = found.get(BASE, 0.0), found[NEW]
        return {**scores, "base": b, "new": n, "harmonic_mean": 2 * b * n / (b + n) if b + n else 0.0}
    others = [value for name, value in found.items() if name != named[trained].name]
    if others and len(named) > 1 and named[0].name != BASE:
        scores |= {f"accuracy@{name}": value for name, value in found.items()}
        scores["transfer"] = float(np.mean(others))
    return scores
