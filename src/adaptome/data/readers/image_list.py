"""Lists of pictures with their class, a line each, as VTAB-1k's are: a path, a blank, the number or name of the class.

    images/train/00001.jpg 12            train800.txt, val200.txt, train800val200.txt, test.txt beside the folder images

Paths are relative to the list's own folder; the class is what follows the last blank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of


@reader("image-list", ".image-list")
def read_image_list(path: Path, options: ReadOptions) -> Table:
    """Columns image (a file) and label.

    Raises:
        DataError: an empty list, a line without a class, or a file that is missing or no picture; names the line.
    """
    files, labels, numbers = [], [], []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name:
            raise DataError(
                f"{path}, line {number}: {line.strip()!r} has no class. A line is a path, a blank and a class."
            )
        file = path.parent / name.strip()
        if not file.is_file():
            raise DataError(
                f"{path}, line {number}: no file {file}. Paths are relative to the list's own folder."
            )
        assert IMAGES.check is not None
        IMAGES.check(file)
        files.append(str(file))
        labels.append(label)
        numbers.append(number)
    if not files:
        raise DataError(f"{path}: the list is empty.")
    columns: dict[str, Any] = {"image": files, "label": labels}
    return Table(str(path), columns, numbers, files={"image": "images"})
