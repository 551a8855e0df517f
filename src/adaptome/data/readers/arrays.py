"""Archives of arrays (.npz, .safetensors): x_train, y_train, x_validation, ... or x and y to be split; sounds as samples and offsets."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

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
_CLIPS = {"samples", "offsets"}
#: endings of archives that hold splits
ARCHIVES = (".npz", ".safetensors")


def read_npz(path: Path, columns: dict[str, str]) -> dict[str, Table]:
    """The splits of an archive, never unpickling.

    Arrays named `<column>_<split>` make splits; else all arrays as long as the first make one, "train". Column x is
    called image when it has three or more dimensions, y is called label; `classes` names the labels.

    Clips of sound are one array of samples and one of offsets, clip i being samples[offsets[i]:offsets[i + 1]], with the
    number sample_rate; they become the column audio. Names may also begin with the split: train_samples, train_offsets.

    Args:
        columns: the recipe's mapping, e.g. {label: subject}; only what differs from x and y need be said.

    Raises:
        DataError: not an archive, no usable arrays, lengths that differ, labels beyond `classes`.
    """
    arrays = read_arrays(path)
    names = [str(name) for name in arrays.pop("classes", np.array([])).tolist()]
    rate = next((arrays.pop(key) for key in ("sample_rate", "sampling_rate") if key in arrays), None)
    behind = {key: key.rpartition("_")[::-2] for key in arrays}  # x_train: ("train", "x")
    ahead = {key: key.partition("_")[::2] for key in arrays}  # train_x
    splits = _by_split(arrays, behind) or _by_split(arrays, ahead)
    if not splits:
        whole = {key: array for key, array in arrays.items() if array.ndim}
        anchor = whole.get(columns.get("image", "x"), next(iter(whole.values()), np.array([])))
        if _CLIPS <= set(whole):
            anchor = whole["offsets"][1:]
        alike = {key: array for key, array in whole.items() if key in _CLIPS or len(array) == len(anchor)}
        splits = {"train": alike}
        if not splits["train"]:
            raise DataError(f"{path}: no arrays; expected x_train, y_train, ... or x and y.")
    made = {}
    for split, found in splits.items():
        clips = _clips(path, split, found, rate) if _CLIPS <= set(found) else None
        made[split] = _table(path, split, found, names, columns, clips)
    return made


def _by_split(
    arrays: dict[str, np.ndarray], parted: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, np.ndarray]]:
    """split -> column -> array, of the arrays whose key is `parted` into the name of a split and a column."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        split, base = parted[key]
        if base and split in _SPLITS and array.ndim:
            splits.setdefault(_SPLITS[split], {})[base] = array
    return splits


def _clips(
    path: Path, split: str, arrays: dict[str, np.ndarray], rate: np.ndarray | None
) -> list[dict[str, Any]]:
    """Take samples and offsets out of `arrays`: clips with their sampling rate."""
    samples, offsets = arrays.pop("samples"), arrays.pop("offsets")
    if rate is None or rate.ndim or rate < 1:
        raise DataError(f"{path}: samples without their rate; add the number sample_rate, such as 16000.")
    whole = np.issubdtype(offsets.dtype, np.integer) and offsets.ndim == 1 and len(offsets) > 1
    if not whole or (np.diff(offsets) < 0).any() or offsets[0] < 0 or offsets[-1] > len(samples):
        raise DataError(
            f"{path}: offsets of the {split} split are to be whole numbers that rise from 0 to the {len(samples)} samples, "
            "one more than there are clips."
        )
    pieces = [samples[a:b] for a, b in pairwise(offsets.tolist())]
    return [{"array": piece, "sampling_rate": int(rate)} for piece in pieces]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive by name, never unpickling.

    Raises:
        DataError: it is no whole archive of plain arrays.
    """
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(path))
        except (
            OSError,
            SafetensorError,
            KeyError,
            TypeError,
        ) as error:  # KeyError, TypeError: bfloat16, which numpy lacks
            raise DataError(
                f"{path} is not a whole .safetensors file of arrays that numpy has: {error}"
            ) from error
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a whole .npz archive of plain arrays: {error}") from error


def _table(
    path: Path,
    split: str,
    arrays: dict[str, np.ndarray],
    names: list[str],
    mapping: dict[str, str],
    clips: list[dict[str, Any]] | None,
) -> Table:
    lengths = {key: len(array) for key, array in arrays.items()}
    if clips is not None:
        lengths["clips"] = len(clips)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key}_{split} {n}" for key, n in lengths.items())
        raise DataError(f"{path}: the arrays of the {split} split differ in length: {found}.")
    for wanted, key in mapping.items():
        if key not in arrays and not (key == "audio" and clips is not None):
            raise DataError(
                f"{path}: data.columns maps {wanted!r} to {key!r}, but the {split} split has no such array."
                f"{did_you_mean(key, arrays)} Arrays there: {', '.join(arrays)}."
            )
    taken = set(mapping.values())
    columns: dict[str, Any] = {} if clips is None else {"audio": clips}
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
