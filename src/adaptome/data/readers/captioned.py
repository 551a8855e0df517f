"""Pictures with texts: a folder of pictures, and for each the text that stands beside it.

    dog/01.jpg  dog/01.txt                     a text file of the same name (as kohya's scripts have it)
    dog/metadata.jsonl  or  metadata.csv       {"file_name": "01.jpg", "text": "..."} a row (as the hub's image folders have it);
                                               with "condition": "01-edges.png" also what the picture is to be made by

A JSON row's text may be a list of texts; its other keys are further columns, such as `long`. Without texts there is no column `text`: the task gives one for all.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import read_text

#: what a table's keys mean; others are further columns
KNOWN = ("file_name", "text", "condition", "image")


@reader("captioned", ".captioned", folders=True)
def read_captioned(path: Path, options: ReadOptions) -> Table:
    """Columns image and, where there are such, text and condition.

    Raises:
        DataError: no pictures, one without a text or condition where others have one, or a table that cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path}: the format captioned is of folders of pictures.")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGES.endings)
    if not files:
        raise DataError(f"{path}: no pictures. Endings read: {', '.join(sorted(IMAGES.endings))}.")
    for file in files:
        assert IMAGES.check is not None
        IMAGES.check(file)
    texts, conditions, others = _beside(path, files)
    given = set(conditions.values())
    files = [file for file in files if str(file) not in given]
    columns: dict[str, list[Any]] = {"image": [str(file) for file in files]}
    for name, told in (("text", texts), ("condition", conditions)):
        missing = [str(file) for file in files if file not in told]
        if told and missing:
            raise DataError(
                f"{missing[0]}: no {name}, and {len(told)} of the {len(files)} pictures have one."
            )
        columns |= {name: [told[file] for file in files]} if told else {}
    kinds = {name: "images" for name in columns if name != "text"}
    for name in dict.fromkeys(key for row in others.values() for key in row):
        columns[name] = [others.get(file, {}).get(name) for file in files]
    return Table(
        str(path), columns, range(1, len(files) + 1), files=kinds, places=[str(f) for f in files]
    )  # fmt: skip


def _beside(
    folder: Path, files: list[Path]
) -> tuple[dict[Path, Any], dict[Path, str], dict[Path, dict[str, Any]]]:
    """Each picture's text, the file of its condition, and what else a table tells of it, where there are such."""
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            rows = {folder / row["file_name"]: row for row in _rows(folder / name)}
            conditions = {
                file: str(folder / r["condition"]) for file, r in rows.items() if r.get("condition")
            }
            told = {file: {k: v for k, v in r.items() if k not in KNOWN} for file, r in rows.items()}
            return {file: row["text"] for file, row in rows.items()}, conditions, told
    beside = {file: file.with_suffix(".txt") for file in files}
    return {file: read_text(text).strip() for file, text in beside.items() if text.is_file()}, {}, {}


def _rows(file: Path) -> list[dict[str, Any]]:
    text = read_text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        absent = [key for key in ("file_name", "text") if not row.get(key)]
        if absent:
            raise DataError(f"{file}, row {number}: no {absent[0]!r}. Each row needs file_name and text.")
        first = seen.setdefault(str(row["file_name"]), number)
        if first != number:
            raise DataError(f"{file}, row {number}: {row['file_name']} is told of in row {first} already. A picture has one row; several texts of it are a list in a JSON row.")  # fmt: skip
    return rows
