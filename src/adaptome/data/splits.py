"""Splits: rows of a `datasets.Dataset` that remember the file and line each came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from adaptome.core.errors import DataError, did_you_mean


@dataclass
class Table:
    """What a reader returns: columns of equal length and where each row stands.

    `unit` says what `lines` count: lines, items and rows of files from 1, rows of arrays and of the hub from 0.
    A column is a list, or a numpy array whose first dimension counts rows. `names` holds label names of integer
    columns.
    """

    file: str
    columns: Mapping[str, Sequence[Any] | np.ndarray]
    lines: Sequence[int]
    unit: str = "line"
    names: dict[str, list[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # columns of paths -> "images" or "sounds"
    notes: list[str] = field(default_factory=list)  # what the reader changed, for the user to read
    line_per_item: bool = False  # a row's lists have their items on successive lines
    places: Sequence[str] | None = None  # overrides file, unit and line, e.g. an image's own path

    def place(self, row: int) -> str:
        """ "train.jsonl, line 7" for a row."""
        return self.places[row] if self.places is not None else f"{self.file}, {self.unit} {self.lines[row]}"


@dataclass
class Split:
    """One split.

    rows: the examples. where(i): "train.jsonl, line 7" for row i. source: the file or files as one string.
    """

    rows: datasets.Dataset
    tables: list[Table]
    origin: np.ndarray  # [rows, 2]: table, row in that table

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def source(self) -> str:
        return ", ".join(t.file for t in self.tables)

    def where(self, row: int, item: int | None = None) -> str:
        """Place of a row in its file, or of an item of the list in it."""
        table, index = (int(n) for n in self.origin[row])
        found = self.tables[table]
        if found.places is not None or item is None:
            return found.place(index)
        line = found.lines[index]
        if found.line_per_item:
            return f"{found.file}, {found.unit} {line + item}"
        return f"{found.file}, {found.unit} {line}, item {item + 1}"

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The rows at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Split(self.rows.select(chosen), self.tables, self.origin[chosen])


class Splits(dict[str, Split]):
    """The splits by name (train, validation, test), and notes on what reading changed."""

    def __init__(self, splits: Mapping[str, Split], notes: Sequence[str] = ()):
        super().__init__(splits)
        self.notes = list(notes)

    def as_dataset_dict(self) -> datasets.DatasetDict:
        """The same as a `datasets.DatasetDict`, without the places."""
        return datasets.DatasetDict({name: split.rows for name, split in self.items()})

    def require(self, *columns: str) -> None:
        """Check that every split has these columns, with a value in every row.

        Raises:
            DataError: names the file, the columns there are, and the line of a row without a value.
        """
        for name, split in self.items():
            for column in columns:
                _require(name, split, column, columns)


def _require(name: str, split: Split, column: str, all_required: Sequence[str]) -> None:
    there = split.rows.column_names
    if column not in there:
        likely = next((other for other in there if other not in all_required), "...")
        raise DataError(
            f"{split.source}: the {name} split has no column {column!r}.{did_you_mean(column, there)}\n"
            f"  Columns there: {', '.join(there) or 'none'}.\n"
            f"  Say which one it is, e.g. data.columns: {{{column}: {likely}}}."
        )
    values = split.rows.select_columns([column]).with_format("arrow")[:].column(column)
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise DataError(f"{split.where(row)}: no value for {column!r}.")


def to_split(tables: list[Table], name: str) -> Split:
    """One split of all the rows of `tables`.

    Raises:
        DataError: no rows, columns that differ between files, or values of mixed types (names the line).
    """
    for table in tables:
        if not len(table.lines):
            raise DataError(f"{table.file}: the {name} split is empty.")
        if set(table.columns) != set(tables[0].columns):
            raise DataError(
                f"{table.file} has the columns {', '.join(sorted(table.columns))}; "
                f"{tables[0].file} has {', '.join(sorted(tables[0].columns))}. Files of one split need the same ones."
            )
    parts = [_dataset(table) for table in tables]
    try:
        rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        files = ", ".join(t.file for t in tables)
        raise DataError(
            f"{files}: columns differ in type between the files of the {name} split: {error}"
        ) from error
    origin = np.concatenate(
        [np.stack([np.full(len(t.lines), i), np.arange(len(t.lines))], axis=1) for i, t in enumerate(tables)]
    )
    return Split(rows, tables, origin.astype(np.int64))


def _dataset(table: Table) -> datasets.Dataset:
    made = {column: _column(table, column) for column in table.columns}
    features = datasets.Features({column: feature for column, (_, feature) in made.items()})
    return datasets.Dataset.from_dict({c: values for c, (values, _) in made.items()}, features=features)


def _column(table: Table, column: str) -> tuple[Any, Any]:
    values = table.columns[column]
    if column in table.files:
        return _files(values, table.files[column])
    if column in table.names:
        return list(values), datasets.ClassLabel(names=table.names[column])
    if isinstance(values, np.ndarray) and values.ndim in (3, 4, 5):
        kind = {3: datasets.Array2D, 4: datasets.Array3D, 5: datasets.Array4D}[values.ndim]
        return values, kind(shape=values.shape[1:], dtype=str(values.dtype))
    if isinstance(values, np.ndarray) and values.ndim > 5:
        raise DataError(
            f"{table.file}: array {column!r} has {values.ndim} dimensions; at most 5 (rows first) are read."
        )
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    try:
        kind = pa.array(listed).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise _mixed(table, column, listed, error) from error
    return listed, datasets.features.features.generate_from_arrow_type(kind)


#: A sound by its file or its bytes, as the hub stores it; never decoded by `datasets`, which needs torchcodec for that.
SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def _files(paths: Sequence[Any] | np.ndarray, what: str) -> tuple[Any, Any]:
    if what == "images":
        return list(paths), datasets.Image()
    return [{"bytes": None, "path": path} for path in paths], SOUND


def _mixed(table: Table, column: str, values: list[Any], error: Exception) -> DataError:
    """Find the first row that does not go with those before it."""
    low, high = 1, len(values)  # values[:low] is fine, values[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            high = middle
    first = next((v for v in values if v is not None), None)
    return DataError(
        f"{table.place(high - 1)}: {column!r} is {values[high - 1]!r} ({type(values[high - 1]).__name__}), unlike the rows before "
        f"it, such as {first!r} ({type(first).__name__}). A column holds one type."
    )
