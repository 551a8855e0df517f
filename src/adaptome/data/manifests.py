"""Manifests: tables whose rows stand for files beside them.

The task's column of files holds paths relative to the table that names them. Where the table gives but parts of a path, a
pattern of its columns makes it, relative to the table too:

    paths="../audio/{filename}"                          # ESC-50: meta/esc50.csv
    paths="../audio/fold{fold}/{slice_file_name}"        # UrbanSound8K: metadata/UrbanSound8K.csv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Table


def with_files(found: Any, column: str | None, pattern: str | None, mapping: Mapping[str, str]) -> Any:
    """The tables with their column of files resolved; what is not a table read from a file stays as it is.

    Args:
        column: the task's name of the column; None for a task that reads no files.
        pattern: of the paths, from the table's columns; None where a column holds them.
        mapping: the recipe's `data.columns`.

    Raises:
        DataError: a pattern for a task without files or beside a mapped column, or one that names no column.
    """
    if column is None:
        raise DataError("data.paths: the task reads no files. Leave it out.")
    if pattern is not None and column in mapping:
        raise DataError(
            f"data.paths makes the column {column!r}, and data.columns maps it to {mapping[column]!r}. Give one."
        )
    if not isinstance(found, list):
        if pattern is not None:
            raise DataError("data.paths: a hub data set brings its files itself. Leave it out.")
        return found
    return [_resolved(table, column, pattern, mapping.get(column, column)) for table in found]


def _resolved(table: Table, column: str, pattern: str | None, source: str) -> Table:
    folder = Path(table.file).parent
    if pattern is None:
        given = table.columns.get(source)
        if source in table.files or given is None or not all(isinstance(v, str) for v in given):
            return table
        paths = list(given)
    else:
        paths, source = _filled(table, pattern), column
    columns = {**table.columns, source: [str(folder / Path(path).expanduser()) for path in paths]}
    files = (
        table.files if column == "image" else {**table.files, source: "sounds"}
    )  # pictures are opened by path
    return replace(table, columns=columns, files=files)


def _filled(table: Table, pattern: str) -> list[str]:
    """The pattern with every row's values."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise DataError(
            f"data.paths={pattern!r}: not a pattern ({error}). E.g. ../audio/{{filename}}."
        ) from None
    for name in fields:
        if name not in table.columns:
            raise DataError(
                f"{table.file}: data.paths={pattern!r} names {name!r}, but there is no such column."
                f"{did_you_mean(name, table.columns)} Columns there: {', '.join(table.columns)}."
            )
    rows = range(len(table.lines))
    return [pattern.format_map({name: table.columns[name][row] for name in fields}) for row in rows]
