"""Few-shot image sets as CoOp's protocol has them: a JSON object of all splits, or a text file of one (FGVC Aircraft's).

    {"train": [["images/cat/1.jpg", 0, "cat"], ...], "val": [...], "test": [...]}       split_zhou_OxfordPets.json
    1025794 707-320                                                                      images_variant_train.txt

Paths are relative to the file's folder, or to a folder in it (oxford_pets/images): the first that holds the first picture. Columns: image,
label (the class's name), number (the file's, by which classes are ordered) and dataset, the folder's name. Zhou et al. 2022, arXiv:2109.01134; the biomedical sets of
BiomedCoOp, arXiv:2411.15232, have the same layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Table
from adaptome.data.textfile import read_text

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def read_coop(path: Path) -> dict[str, Table]:
    """The splits of a file; those that it has no pictures for are left out.

    Raises:
        DataError: another layout, a number with two names, or pictures that are not there.
    """
    if path.suffix.lower() == ".txt":
        rows = {"train": _listed(path)}
    else:
        content = _content(path)
        rows = {split: _rows(path, key, content[key]) for key, split in _SPLITS.items() if content.get(key)}
    numbered: dict[int, str] = {}
    for split in rows.values():
        for _, number, name in split:
            if numbered.setdefault(number, name) != name:
                raise DataError(
                    f"{path}: the label {number} is called {numbered[number]!r} and {name!r}. Each number has one name."
                )
    return {split: _table(path, found) for split, found in rows.items()}


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not set(content) & set(_SPLITS):
        there = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(
            f"{path}: expected an object of train, val and test, lists of [path, number, class name]; found {there}."
        )
    return content


def _rows(path: Path, key: str, given: Any) -> list[tuple[str, int, str]]:
    for number, row in enumerate(given):
        if not (
            isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], int)
        ):
            raise DataError(f"{path}, {key}, item {number + 1}: {row!r} is not [path, number, class name].")
    return [(row[0], row[1], str(row[2])) for row in given]


def _listed(path: Path) -> list[tuple[str, int, str]]:
    """Lines of a picture and its class, numbered as the names are sorted."""
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        image, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if not name:
            raise DataError(f"{path}, line {number}: {line!r} is not a picture and its class.")
        pairs.append((image, name.strip()))
    order = {name: i for i, name in enumerate(sorted({name for _, name in pairs}))}
    return [(image, order[name], name) for image, name in pairs]


def _table(path: Path, rows: Sequence[tuple[str, int, str]]) -> Table:
    root, ending = _root(path, rows[0][0])
    files = [root / f"{image}{ending}" for image, _, _ in rows]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise DataError(
            f"{path}: {len(absent)} of {len(files)} pictures are not there, first {absent[0]}.\n"
            "  Unpack the data set beside the file, as its own page says."
        )
    places = [str(file) for file in files]
    columns: dict[str, list[Any]] = {
        "image": places,
        "label": [name for _, _, name in rows],
        "number": [number for _, number, _ in rows],
        "dataset": [path.resolve().parent.name] * len(rows),
    }
    return Table(str(path), columns, range(1, len(rows) + 1), files={"image": "images"}, places=places)


def _root(path: Path, first: str) -> tuple[Path, str]:
    """The folder that paths are relative to, and the ending that they lack."""
    folder = path.parent
    below = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    endings = [""] if Path(first).suffix.lower() in ENDINGS else ["", ".jpg", ".png"]
    for root in (folder, *below):
        for ending in endings:
            if (root / f"{first}{ending}").is_file():
                return root, ending
    looked = ", ".join([".", *(d.name for d in below[:8])])
    raise DataError(
        f"{path}: its first picture, {first}, is in none of the folders beside it ({looked}).\n"
        "  Unpack the data set's pictures there, e.g. images/."
    )
