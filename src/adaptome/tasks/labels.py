"""Labels: from what the data holds to numbers and names, with unknown ones named by file and line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split, Splits


class LabelSet:
    """The labels of a run, in order.

    names: readable, in the order of the model's outputs. `number(value)` is None for a label not among them.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._numbers = {name: i for i, name in enumerate(self.names)}

    def number(self, value: Any, known: Sequence[str] | None) -> int | None:
        """The number of a value of the data; `known` names integer values (a ClassLabel's names)."""
        name = label_name(value, known)
        if name in self._numbers:
            return self._numbers[name]
        if (
            isinstance(value, int)
            and not self._all_digits()
            and 0 <= value < len(self.names)
            and known is None
        ):
            return value  # numbers in the data, names in the options
        return None

    def _all_digits(self) -> bool:
        return all(name.lstrip("-").isdigit() for name in self.names)


def label_name(value: Any, known: Sequence[str] | None) -> str:
    """The readable name of a label: a ClassLabel's name, else the value as text."""
    if known is not None and isinstance(value, int) and 0 <= value < len(known):
        return known[value]
    return str(value)


def known_names(feature: Any) -> list[str] | None:
    """Names that the data set itself gives to integer labels, also inside lists."""
    while isinstance(feature, datasets.List | datasets.Sequence | list):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def labels_of_train(splits: Splits, column: str, given: Sequence[str] | None) -> LabelSet:
    """The labels: as given, as the data set names them, or those that occur in train, sorted.

    Raises:
        DataError: fewer than two labels, labels that are neither text nor whole numbers, or no train split.
    """
    if given is not None:
        return LabelSet(given)
    if "train" not in splits:
        raise DataError(
            "Labels come from the train split, and there is none. Give data.train, or task.labels."
        )
    split = splits["train"]
    names = known_names(split.rows.features[column])
    if names is not None:
        return LabelSet(names)
    values = set()
    for row, value in enumerate(split.rows.with_format(None)[column]):
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int):
                raise DataError(
                    f"{split.where(row)}: label {one!r} is a {type(one).__name__}; expected text or a whole number."
                )
            values.add(one)
    if len(values) < 2:
        found = f"only {next(iter(values))!r}" if values else "none"
        raise DataError(f"{split.source}: two labels or more are needed in {column!r}; train has {found}.")
    return LabelSet(_ordered(values))


def _ordered(values: Iterable[Any]) -> list[str]:
    names = {str(v) for v in values}
    if all(name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def numbers(split: Split, name: str, column: str, labels: LabelSet) -> list[Any]:
    """The split's labels as numbers; lists of labels stay lists.

    Raises:
        DataError: names file and line of a label that train does not have, and the nearest that it has.
    """
    known = known_names(split.rows.features[column])
    made: list[Any] = []
    for row, value in enumerate(split.rows.with_format(None)[column]):
        if isinstance(value, list):
            made.append([_number(split, name, row, i, v, labels, known) for i, v in enumerate(value)])
        else:
            made.append(_number(split, name, row, None, value, labels, known))
    return made


def _number(
    split: Split,
    name: str,
    row: int,
    item: int | None,
    value: Any,
    labels: LabelSet,
    known: Sequence[str] | None,
) -> int:
    number = labels.number(value, known)
    if number is None:
        readable = label_name(value, known)
        there = ", ".join(labels.names[:12]) + (", ..." if len(labels.names) > 12 else "")
        raise DataError(
            f"{split.where(row, item)}: label {readable!r} of the {name} split is not among the "
            f"{len(labels.names)} labels of train.{did_you_mean(readable, labels.names)}\n  Labels: {there}."
        )
    return number


def targets(split: Split, name: str, found: list[Any], count: int, many: bool) -> list[Any]:
    """Label numbers as a loss takes them: themselves, or where a row may have many, 0 and 1 for each of `count` labels.

    Args:
        name: the split's, for messages.
        found: a number of each row, or a list of them.

    Raises:
        DataError: a row has a list where it is to have one label, or the other way round; names its place.
    """
    for row, value in enumerate(found):
        if isinstance(value, list) != many:
            told = (
                "is a single label, but task.multi_label is set"
                if many
                else "is a list; set task.multi_label"
            )
            raise DataError(f"{split.where(row)}: the label of the {name} split {told}.")
    if not many:
        return found
    hot = np.zeros((len(found), count), dtype=np.float32)
    for row, value in enumerate(found):
        hot[row, value] = 1
    made: list[Any] = hot.tolist()
    return made
