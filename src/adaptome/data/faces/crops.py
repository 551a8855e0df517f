"""Faces in pictures, as a detector or a file of boxes tells them, and their crops: aligned where the eyes, nose and mouth are known.

A detector is a program of the user's. It is called with the paths of pictures as arguments, and prints a line of JSON for each
picture, in their order: a list of faces, `[{"box": [left, top, right, bottom], "points": [[x, y], ...]}, ...]`. A file of boxes
holds such faces, one a line, each with `file` (and `frame`, where it is a video). `points` are the two eyes, the tip of the nose
and the corners of the mouth, each pair from left to right in the picture; they may be left out.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.textfile import lines_of

#: where the five points are in an aligned face, as shares of its crop's side (those of ArcFace, for a side of 112)
POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) / 112  # fmt: skip
SCALE = 1.3


class Face(NamedTuple):
    """A face in a picture: box [4] as left, top, right, bottom, and five points [5, 2] or None, in pixels."""

    box: np.ndarray
    points: np.ndarray | None = None

    @property
    def area(self) -> float:
        """Of the box."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


def largest(faces: Sequence[Face]) -> Face | None:
    """The face with the largest box; None where there is none."""
    return max(faces, key=lambda face: face.area, default=None)


def crop(picture: Any, face: Face, scale: float = SCALE) -> Any:
    """The face's square, `scale` times as wide as its box; turned and scaled so that its points lie as in `POINTS` where it has any.

    Args:
        picture: a PIL picture.

    Returns:
        a PIL picture, whose side is that of the square in the picture's own pixels; black outside the picture.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    width, height = face.box[2] - face.box[0], face.box[3] - face.box[1]
    if face.points is None:
        side = max(1.0, float(max(width, height)) * scale)
        left, top = face.box[0] + width / 2 - side / 2, face.box[1] + height / 2 - side / 2
        matrix = np.array([[1, 0, left], [0, 1, top]])
    else:
        # a share p of the crop lies at share (p - 1/2) / scale + 1/2 of the wanted square
        wanted = (POINTS - 0.5) / scale + 0.5
        across = similarity(wanted, face.points)
        side = max(1.0, float(np.hypot(across[0, 0], across[1, 0])))
        matrix = np.hstack([across[:, :2] / side, across[:, 2:]])
    length = max(1, round(side))
    return picture.transform(
        (length, length), Image.Transform.AFFINE, tuple(matrix.reshape(-1)), Image.Resampling.BILINEAR
    )


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and move [2, 3] that takes points [n, 2] nearest to others in the least squares (Umeyama 1991)."""
    middle, goal = source.mean(0), target.mean(0)
    a, b = source - middle, target - goal
    u, s, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1.0, np.sign(np.linalg.det(u @ vt))])
    scale = np.trace(np.diag(s) @ flip) / (a**2).sum()
    turn = scale * u @ flip @ vt
    return np.hstack([turn, (goal - turn @ middle)[:, None]])


class Detector:
    """A program that finds faces.

    Args:
        command: as in a shell, but no shell runs it.
        seconds: after which it is given up.
    """

    def __init__(self, command: str, seconds: float = 600):
        self.command, self.seconds = shlex.split(command), seconds

    def __call__(self, pictures: Sequence[Any]) -> list[list[Face]]:
        """The faces in each PIL picture.

        Raises:
            DataError: the program cannot be run, fails, takes too long, or prints something else.
        """
        with TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{number:06}.png") for number in range(len(pictures))]
            for picture, path in zip(pictures, paths, strict=True):
                picture.save(path)
            lines = self._run(paths)
        if len(lines) != len(pictures):
            raise DataError(
                f"{self.command[0]} printed {len(lines)} lines for {len(pictures)} pictures; expected a JSON list of faces for each."
            )
        return [[face_of(one, f"{self.command[0]}, line {n}") for one in _json(line, f"{self.command[0]}, line {n}", list)] for n, line in enumerate(lines, 1)]  # fmt: skip

    def _run(self, paths: list[str]) -> list[str]:
        try:
            done = subprocess.run(
                [*self.command, *paths], capture_output=True, text=True, timeout=self.seconds, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"the detector {self.command[0]} cannot be run: {error}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise DataError(f"the detector {self.command[0]} failed with {done.returncode}: {last}")
        return [line for line in done.stdout.splitlines() if line.strip()]


class Boxes:
    """Faces by a file of boxes: JSON lines with file, box, and perhaps points and frame."""

    def __init__(self, path: Path):
        self.path = path
        self.faces: dict[tuple[str, int], list[Face]] = {}
        for number, line in enumerate(lines_of(path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            row = _json(line, where, dict)
            if not isinstance(row.get("file"), str):
                raise DataError(f"{where}: no 'file'.")
            key = self._key(row["file"]), int(row.get("frame", 0))
            self.faces.setdefault(key, []).append(face_of(row, where))

    def of(self, file: str | Path, frame: int = 0) -> list[Face]:
        """The faces in a picture, or in a frame of a video."""
        return self.faces.get((self._key(str(file)), frame), [])

    def _key(self, file: str) -> str:
        """Paths are relative to the file of boxes, or to where the command runs."""
        near = self.path.parent / file
        return str((near if near.exists() else Path(file)).resolve())


def face_of(row: Any, where: str) -> Face:
    """A face as a detector or a file tells it.

    Raises:
        DataError: no box of four numbers with an extent, or points that are not five pairs.
    """
    row = row if isinstance(row, dict) else {}
    box, points = _array(row.get("box"), (4,)), row.get("points")
    if box is None or box[2] <= box[0] or box[3] <= box[1]:
        raise DataError(f"{where}: box is {row.get('box')!r}; expected [left, top, right, bottom] in pixels.")
    found = None if points is None else _array(points, (5, 2))
    if points is not None and found is None:
        raise DataError(
            f"{where}: points are {points!r}; expected five pairs [x, y]: eyes, nose, corners of the mouth."
        )
    return Face(box, found)


def _array(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        made = np.asarray(value, float)
    except (TypeError, ValueError):
        return None
    return made if made.shape == shape and np.isfinite(made).all() else None


def _json(line: str, where: str, kind: type) -> Any:
    try:
        made = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}.") from error
    if not isinstance(made, kind):
        raise DataError(f"{where} holds {made!r}; expected a JSON {'list' if kind is list else 'object'}.")
    return made
