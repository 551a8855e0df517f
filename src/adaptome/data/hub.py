"""Data sets from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split, Table

_ALIASES = {
    "validation": ("validation", "valid", "val", "dev", "devel"),
    "test": ("test",),
    "train": ("train",),
}


def hub_splits(
    name: str, config: str | None, revision: str | None, wanted: Mapping[str, str | Sequence[str] | None]
) -> dict[str, Split]:
    """The splits of a hub data set, from the local cache where it is there.

    Args:
        wanted: split of the run -> name of the data set's split; without any, the names say it.

    Raises:
        DataError: no such data set or split, or the hub cannot be reached.
    """
    try:
        loaded = datasets.load_dataset(name, config, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"data.name={name!r}: no file or folder of that name here, and no such data set on the hub "
            f"(private ones need a login): {error}"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.name={name!r}: no file or folder of that name here, and the hub data set could not be loaded: "
            f"{error}\n  Without network, give local files: data.train, data.validation, data.test."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"data.name={name!r}: expected splits in memory, found {type(loaded).__name__}.")
    found = {split: _pick(name, loaded, split, wanted) for split in ("train", "validation", "test")}
    return {split: _split(name, key, loaded[key]) for split, key in found.items() if key}


def _pick(name: str, loaded: Any, split: str, wanted: Mapping[str, Any]) -> str | None:
    if wanted:
        asked = wanted.get(split)
        if asked is None:
            return None
        if not isinstance(asked, str) or asked not in loaded:
            raise DataError(
                f"data.{split}={asked!r}: the hub data set {name!r} has no such split."
                f"{did_you_mean(str(asked), loaded)} It has: {', '.join(loaded)}."
            )
        return asked
    return next((alias for alias in _ALIASES[split] if alias in loaded), None)


def _split(name: str, key: str, rows: datasets.Dataset) -> Split:
    if not len(rows):
        raise DataError(f"{name}: the {key} split is empty.")
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Audio):  # as bytes: decoding them is ours, and needs no torchcodec
            rows = rows.cast_column(column, datasets.Audio(decode=False))
    table = Table(name, {}, range(len(rows)), unit=f"{key} row")
    origin = np.stack([np.zeros(len(rows)), np.arange(len(rows))], axis=1).astype(np.int64)
    return Split(rows, [table], origin)
