"""JSON lines, JSON lists, delimited tables, parquet and plain text."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of, read_bytes, read_text


@reader("jsonl", ".jsonl", ".ndjson")
def read_jsonl(path: Path, options: ReadOptions) -> Table:
    """One JSON object per line; blank lines are passed over."""
    rows, places = [], []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        if not line.strip():
            continue
        try:
            row = _parsed(line, f"{path}, line {number}")
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}): {_short(line)}"
            ) from error
        rows.append(_object(row, f"{path}, line {number}"))
        places.append(number)
    return Table(str(path), _columns(rows), places)


@reader("json", ".json")
def read_json(path: Path, options: ReadOptions) -> Table:
    """A JSON list of objects, an object whose only list holds them (e.g. {"data": [...]}), or one of objects by their number (SugarCrepe's)."""
    try:
        content = _parsed(read_text(path, options.encoding), str(path))
    except json.JSONDecodeError as error:
        hint = " One object per line? Then data.format: jsonl." if error.msg == "Extra data" else ""
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}).{hint}"
        ) from error
    if isinstance(content, dict):
        lists = [key for key, value in content.items() if isinstance(value, list)]
        if content and all(isinstance(value, dict) for value in content.values()):
            content, lists = {"rows": list(content.values())}, ["rows"]
        if len(lists) != 1:
            raise DataError(
                f"{path}: expected a list of objects, found an object with the keys {', '.join(content)}."
            )
        content = content[lists[0]]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of objects, found {_short(repr(content))}.")
    rows = [_object(row, f"{path}, item {number}") for number, row in enumerate(content, 1)]
    return Table(str(path), _columns(rows), range(1, len(rows) + 1), unit="item")


@reader("csv", ".csv")
def read_csv(path: Path, options: ReadOptions) -> Table:
    """A table with a header line; fields stay text."""
    return _delimited(path, options, options.delimiter or ",")


@reader("tsv", ".tsv")
def read_tsv(path: Path, options: ReadOptions) -> Table:
    """The same, tabs between the fields."""
    return _delimited(path, options, options.delimiter or "\t")


@reader("parquet", ".parquet")
def read_parquet(path: Path, options: ReadOptions) -> Table:
    """A parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(read_bytes(path)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file: {error}") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(str(path), columns, range(1, table.num_rows + 1), unit="row")


@reader("text", ".txt", ".text")
def read_lines(path: Path, options: ReadOptions) -> Table:
    """Every line that is not blank is one text."""
    kept = [(n, line) for n, line in enumerate(lines_of(path, options.encoding), 1) if line.strip()]
    return Table(str(path), {"text": [line for _, line in kept]}, [n for n, _ in kept])


def _parsed(text: str, place: str) -> Any:
    """The JSON value, in which no object has a key twice: of two values one would be lost.

    Raises:
        DataError: an object has.
        json.JSONDecodeError: it is not JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{place}: an object has the key {twice!r} twice, with {_short(repr(pairs[names.index(twice)][1]))} first.\n"
                "  Rename or remove one of them."
            )
        return made

    return json.loads(text, object_pairs_hook=unique)


def _delimited(path: Path, options: ReadOptions, delimiter: str) -> Table:
    if len(delimiter) != 1:
        raise DataError(f"data.delimiter={delimiter!r}: a delimiter is one character.")
    rows = _csv_rows(path, read_text(path, options.encoding), delimiter)
    if not rows:
        raise DataError(f"{path}: empty; a header line with the columns' names is needed.")
    (_, header), *body = rows
    if len(header) == 1 and options.delimiter is None:
        _check_delimiter(path, header[0], delimiter)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}, line 1: column {twice[0]!r} stands twice in the header: {', '.join(header)}."
        )
    for number, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(row)} fields, but the header has {len(header)} ({', '.join(header)}): "
                f"{_short(delimiter.join(row))}"
            )
    columns = {name: [row[i] for _, row in body] for i, name in enumerate(header)}
    return Table(str(path), columns, [number for number, _ in body])


def _check_delimiter(path: Path, header: str, used: str) -> None:
    """Refuse a header of one column that another delimiter parts."""
    other = next((sign for sign in (";", "\t", "|", ",") if sign != used and sign in header), None)
    if other is not None:
        raise DataError(
            f"{path}, line 1: the header is one column, {header!r}. Are its fields parted by {other!r}?\n"
            f"  Then data.delimiter: {json.dumps(other)}; data.delimiter: {json.dumps(used)} if it is one column."
        )


def _csv_rows(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Rows with the number of their first line; a quoted field may span lines."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long documents
    rows, start = [], 1
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in table:
            if row:
                rows.append((start, row))
            start = table.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {start}: not a valid row ({error}). Is a quotation mark left open?"
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f'{place}: expected an object such as {{"text": ...}}, found {_short(json.dumps(row))}.'
        )
    return row


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """All keys of all rows; a row without a key has None there."""
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
