"""Lists of satellite pictures as fMoW's are given: a CSV of a category, a place, a time and a file.

    category,image_path,timestamp                            fMoW-RGB as SatMAE lists it: airport,train/airport/airport_0/airport_0_1_rgb.jpg,...
    category,location_id,image_id,timestamp                  fMoW-Sentinel: <folder of the list>/<split>/airport/airport_0/airport_0_100.tif

The file stands under `image_path`, `image`, `path` or `file`, relative to the list; without such a column it follows from category,
location and image, below the folder `train`, `val` or `test` that the list's name begins with, or beside the list.

`fmow-triples` gives three pictures of one place at three times in each row, the earliest first: for every picture that has two others the two
that lie farthest from it and from each other in the order of time (after SatMAE's temporal set, arXiv:2207.08051). Places with fewer are left out and counted.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import read_text

PATHS = ("image_path", "image", "path", "file")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Picture:
    """A row: its file, category, place and time, and where it stands in the list."""

    file: str
    label: str
    place: str
    time: str
    line: int


@reader("fmow", ".fmow")
def read_fmow(path: Path, options: ReadOptions) -> Table:
    """Columns image (a file), label, place and time (as the list writes it; empty where it does not).

    Raises:
        DataError: a column or a file that is missing; names the line.
    """
    found = pictures(path, options)
    columns = {
        "image": [one.file for one in found],
        "label": [one.label for one in found],
        "place": [one.place for one in found],
        "time": [one.time for one in found],
    }
    return Table(str(path), columns, [one.line for one in found])


@reader("fmow-triples", ".fmow-triples")
def read_triples(path: Path, options: ReadOptions) -> Table:
    """Columns image (a list of three files), label, place and time (that of the first).

    Raises:
        DataError: as `read_fmow`; a time that cannot be read; or no place has three pictures.
    """
    places: dict[str, list[Picture]] = defaultdict(list)
    for one in pictures(path, options):
        places[one.place].append(one)
    rows: list[list[Picture]] = []
    left = 0
    for group in places.values():
        if len(group) < 3:
            left += len(group)
            continue
        times = {one.line: _time(path, one) for one in group}
        group = sorted(group, key=lambda one: (times[one.line], one.line))
        rows += [_triple(group, at) for at in range(len(group))]
    if not rows:
        raise DataError(f"{path}: no place has three pictures; fmow-triples needs three times of one place.")
    columns: dict[str, Any] = {
        "image": [[one.file for one in row] for row in rows],
        "label": [row[0].label for row in rows],
        "place": [row[0].place for row in rows],
        "time": [row[0].time for row in rows],
    }
    notes = [f"{path}: {left} pictures left out, of places with fewer than three."] if left else []
    return Table(str(path), columns, [row[0].line for row in rows], notes=notes)


def pictures(path: Path, options: ReadOptions) -> list[Picture]:
    """The rows of a list.

    Raises:
        DataError: see `read_fmow`.
    """
    table = csv.DictReader(io.StringIO(read_text(path, options.encoding)), delimiter=options.delimiter or ",")
    there = [name for name in table.fieldnames or [] if name]
    _require(path, there)
    column = next((name for name in PATHS if name in there), None)
    found, missing = [], []
    for row in table:
        line = table.line_num
        empty = next((name for name in there if row.get(name) is None), None)
        if empty is not None:
            raise DataError(f"{path}, line {line}: no value for {empty!r}.")
        file = path.parent / row[column] if column else _by_numbers(path, row)
        place = f"{row['category']}_{row['location_id']}" if "location_id" in there else str(file.parent.name)
        if not file.is_file():
            missing.append((line, file))
        found.append(Picture(str(file), row["category"], place, row.get("timestamp") or "", line))
    if missing:
        line, file = missing[0]
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{path}, line {line}: no file {file}{more}. Paths are relative to the list's own folder."
        )
    if not found:
        raise DataError(f"{path}: the list is empty.")
    return found


def _require(path: Path, there: list[str]) -> None:
    if "category" not in there:
        raise DataError(
            f"{path}: no column 'category'.{did_you_mean('category', there)} Columns there: {', '.join(there) or 'none'}."
        )
    if not set(PATHS) & set(there) and not {"location_id", "image_id"} <= set(there):
        raise DataError(
            f"{path}: neither a column of files ({', '.join(PATHS)}) nor location_id and image_id. Columns there: {', '.join(there)}."
        )


def _by_numbers(path: Path, row: dict[str, str]) -> Path:
    """Sentinel's layout: category/category_location/category_location_image.tif."""
    place = f"{row['category']}_{row['location_id']}"
    split = next((name for name in SPLITS if path.name.startswith(name)), "")
    folder = path.parent / split if split and (path.parent / split).is_dir() else path.parent
    return folder / row["category"] / place / f"{place}_{row['image_id']}.tif"


def _time(path: Path, one: Picture) -> datetime:
    try:
        return datetime.fromisoformat(one.time.replace("Z", "+00:00")).replace(tzinfo=None)
    except ValueError:
        raise DataError(
            f"{path}, line {one.line}: timestamp {one.time!r} is no time. Write it as 2016-02-04T08:03:23Z."
        ) from None


def _triple(group: list[Picture], at: int) -> list[Picture]:
    """A picture of a place with the two others that lie farthest from it and from each other in the order of time."""
    others = [i for i in range(len(group)) if i != at]
    first = max(others, key=lambda i: (abs(i - at), -i))
    second = max((i for i in others if i != first), key=lambda i: (min(abs(i - at), abs(i - first)), -i))
    return [group[i] for i in sorted((at, first, second))]
