"""NumPy archives: x_train, y_train, x_validation, ... or x and y to be split."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Table

_SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def read_npz(path: Path, columns: dict[str, str]) -> dict[str, Table]:
    """The splits of an archive, never unpickling.

    Arrays named `<column>_<split>` make splits; else all arrays as long as the first make one, "train". Column x is
    called image when it has three or more dimensions, y is called label; `classes` names the labels.

    Args:
        columns: the recipe's mapping, e.g. {label: subject}; only what differs from x and y need be said.

    Raises:
        DataError: not an archive, no usable arrays, lengths that differ, labels beyond `classes`.
    """
    arrays = _arrays(path)
    names = [str(name) for name in arrays.pop("classes", np.array([])).tolist()]
    splits: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        base, _, split = key.rpartition("_")
        if base and split in _SPLITS and array.ndim:
            splits.setdefault(_SPLITS[split], {})[base] = array
    if not splits:
        whole = {key: array for key, array in arrays.items() if array.ndim}
        anchor = whole.get(columns.get("image", "x"), next(iter(whole.values()), np.array([])))
        splits = {"train": {key: array for key, array in whole.items() if len(array) == len(anchor)}}
        if not splits["train"]:
            raise DataError(f"{path}: no arrays; expected x_train, y_train, ... or x and y.")
    return {split: _table(path, split, found, names, columns) for split, found in splits.items()}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a whole .npz archive of plain arrays: {error}") from error


def _table(
    path: Path, split: str, arrays: dict[str, np.ndarray], names: list[str], mapping: dict[str, str]
) -> Table:
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key}_{split} {n}" for key, n in lengths.items())
        raise DataError(f"{path}: the arrays of the {split} split differ in length: {found}.")
    for wanted, key in mapping.items():
        if key not in arrays:
            raise DataError(
                f"{path}: data.columns maps {wanted!r} to {key!r}, but the {split} split has no such array."
                f"{did_you_mean(key, arrays)} Arrays there: {', '.join(arrays)}."
            )
    taken = set(mapping.values())
    columns: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        columns[_column_name(key, array, taken, mapping)] = array
    rows = next(iter(lengths.values()))
    table = Table(str(path), columns, range(rows), unit=f"{split} row")
    label = mapping.get("label", "label")
    if names and label in columns:
        _check_labels(path, split, columns[label], names)
        table.names[label] = names
    return table


def _column_name(key: str, array: np.ndarray, taken: set[str], mapping: dict[str, str]) -> str:
    """x and y get the names that tasks use, unless the mapping already says what they are."""
    if key == "x" and "x" not in taken and "image" not in mapping and array.ndim >= 3:
        return "image"
    if key == "y" and "y" not in taken and "label" not in mapping:
        return "label"
    return key


def _check_labels(path: Path, split: str, labels: np.ndarray, names: list[str]) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: labels of the {split} split are {labels.dtype} {list(labels.shape)}; with `classes` they are row numbers of it."
        )
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if bad.size:
        raise DataError(
            f"{path}, {split} row {bad[0]}: label {labels[bad[0]]}, but `classes` has {len(names)} names (0 to {len(names) - 1})."
        )
