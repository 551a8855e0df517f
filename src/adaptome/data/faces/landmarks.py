"""Where the faces of pictures are, by a file: JSON lines as `crops.Boxes` reads them, or a table with five points of each.

file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5           a header, or none; commas, tabs or blanks between
anna/001.jpg 30.2 51.1 65.0 51.3 ...         the two eyes, the tip of the nose, the corners of the mouth
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.faces.crops import Boxes, Face, largest
from adaptome.data.textfile import lines_of

POINTS = 5


class Landmarks:
    """The face of each picture that a file tells of.

    Raises:
        DataError: the file cannot be read, or a line is not as above.
    """

    def __init__(self, path: Path):
        self.path = path
        lines = [(n, line.strip()) for n, line in enumerate(lines_of(path), 1) if line.strip()]
        if not lines:
            raise DataError(f"{path} tells of no face.")
        if lines[0][1].startswith("{"):
            self._boxes: Boxes | None = Boxes(path)
            return
        self._boxes, self._faces = None, dict[str, Face]()
        for place, (number, line) in enumerate(lines):
            words = [word for word in re.split(r"[,;\t ]+", line) if word]
            numbers = _numbers(words[1:])
            if numbers is None and place == 0:
                continue  # a header
            if numbers is None or len(numbers) != 2 * POINTS:
                raise DataError(
                    f"{path}, line {number}: {line[:60]!r}; expected a file's name and ten numbers: x and y of both eyes, the nose, both corners of the mouth."
                )
            points = np.array(numbers).reshape(POINTS, 2)
            low, high = points.min(0), points.max(0)
            self._faces[_key(path, words[0])] = Face(np.concatenate([low, high]), points)

    def of(self, file: str | Path) -> Face | None:
        """The largest face of a picture; None where the file tells of none."""
        if self._boxes is not None:
            return largest(self._boxes.of(file))
        return self._faces.get(str(Path(file).resolve()))

    def require(self, file: str | Path) -> Face:
        """The same.

        Raises:
            DataError: the file tells of none; names the nearest that it tells of.
        """
        found = self.of(file)
        if found is None:
            known = [] if self._boxes is not None else [Path(name).name for name in self._faces]
            raise DataError(
                f"{file}: {self.path} tells of no face in it.{did_you_mean(Path(file).name, known)}\n"
                "  Add its line, or leave such pictures out: task.without_face=skip."
            )
        return found


def _numbers(words: list[str]) -> list[float] | None:
    try:
        found = [float(word) for word in words]
    except ValueError:
        return None
    return found if all(map(np.isfinite, found)) else None


def _key(path: Path, name: str) -> str:
    """Names are relative to the file, or to where the command runs."""
    near = path.parent / name
    return str((near if near.exists() else Path(name)).resolve())
