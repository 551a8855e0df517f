"""Faces as the recogniser takes them: read, aligned by what a file or a detector tells of them, with a score of their quality; and their batches."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.faces.crops import Detector, Face, crop, face_of, largest
from adaptome.data.faces.landmarks import Landmarks
from adaptome.data.faces.quality import CNNIQA, Scores, resolution, sharpness
from adaptome.tasks.image_classification import to_rgb

Measure = Literal["sharpness", "resolution", "column", "file", "cnn-iqa", "none"]


class Seen(NamedTuple):
    """A picture: what it is called, itself, and where its face is known to be."""

    name: str
    picture: Any
    face: Face | None = None


class FaceReader:
    """Reads faces.

    Args:
        landmarks: a file of the faces in pictures. detector: or a program that finds them, for pictures that the file does not tell of.
        scale: side of a crop, of the face's.
        whole: take the whole picture where nothing tells of its face; else that is an error.
    """

    def __init__(
        self,
        landmarks: str | None = None,
        detector: str | None = None,
        scale: float = 1.0,
        whole: bool = True,
    ):
        self.landmarks = None if landmarks is None else Landmarks(Path(landmarks))
        self.detector = None if detector is None else Detector(detector)
        self.scale, self.whole = scale, whole

    def __call__(self, one: Any, find: bool = False) -> Seen:
        """A face, cut out and upright where its place is known.

        Args:
            one: a path, PIL picture or array, or a row with `image` and perhaps `box`.
            find: ask the detector.

        Raises:
            DataError: no picture, or no face in it.
        """
        name, picture = opened(one)
        face = self.place(one, name)
        if face is None and find and self.detector is not None:
            face = largest(self.detector([picture])[0])
            if face is None:
                raise DataError(f"{name or 'the picture'}: {self.detector.command[0]} finds no face in it.")
        if face is None and self.landmarks is not None and not self.whole:
            face = self.landmarks.require(name)
        return Seen(name, picture if face is None else crop(picture, face, self.scale), face)

    def place(self, one: Any, name: str) -> Face | None:
        """Where a picture's face is, as its row or the file tells."""
        if self.landmarks is not None and name and (found := self.landmarks.of(name)) is not None:
            return found
        box = one.get("box") if isinstance(one, Mapping) else None
        return face_of({"box": [float(n) for n in str(box).split()]}, f"{name}, box") if box else None


def opened(one: Any) -> tuple[str, Any]:
    """Name and RGB PIL picture of a path, picture, array, or row.

    Raises:
        DataError: a file that cannot be decoded.
    """
    value = one.get("image", one) if isinstance(one, Mapping) else one
    if isinstance(value, Mapping):
        name, content = str(value.get("path") or ""), value.get("bytes")
        if content is None:
            return name, to_rgb(name)
        try:
            return name, to_rgb(_decoded(content))
        except (OSError, SyntaxError) as error:
            raise DataError(f"{name or 'a picture'} cannot be decoded: {error}") from error
    name = str(value) if isinstance(value, str | Path) else ""
    return name, to_rgb(value)


def _decoded(content: bytes) -> Any:
    from PIL import Image

    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


class Quality:
    """Scores of pictures, brought to the scale that adapters are steered by.

    Args:
        measure: what gives them. file: of scores, or of CNN-IQA's weights.
        scale: factor and shift on them; 1 and 0 until training's pictures are known.
    """

    def __init__(self, measure: Measure, file: str | None = None, scale: Sequence[float] | None = None):
        self.measure, self.scale = measure, (1.0, 0.0) if scale is None else (scale[0], scale[1])
        if (measure in ("file", "cnn-iqa")) != (file is not None):
            raise RecipeError(
                f"task.quality={measure} needs task.quality_file, {'CNN-IQA weights in safetensors' if measure == 'cnn-iqa' else 'a table of scores'}."
                if file is None
                else f"task.quality_file={file} is read with task.quality=file or cnn-iqa, not with {measure}."
            )
        self.table = Scores(Path(str(file))) if measure == "file" else None
        self.network = CNNIQA.from_file(Path(str(file))) if measure == "cnn-iqa" else None

    def raw(self, one: Any, seen: Seen) -> float:
        """The score as the measure gives it.

        Raises:
            DataError: there is none of this picture.
        """
        if self.measure == "sharpness":
            return sharpness(seen.picture)
        if self.measure == "resolution":
            return resolution(seen.picture)
        if self.network is not None:
            return self.network.of(seen.picture)
        if self.table is not None:
            return self.table.of(seen.name)
        value = one.get("quality") if isinstance(one, Mapping) else None
        if value is None:
            raise DataError(
                f"{seen.name or 'a picture'} has no quality: this task reads it from the column 'quality'.\n"
                "  Give rows {'image': ..., 'quality': ...}, or have it measured: task.quality=sharpness."
            )
        return float(value)

    def __call__(self, one: Any, seen: Seen) -> float:
        """The score on the scale.

        Raises:
            DataError: there is none of this picture, or it is no number.
        """
        score = self.scale[0] * self.raw(one, seen) + self.scale[1]
        if not np.isfinite(score):
            raise DataError(f"{seen.name or 'a picture'}: its quality is {score}; expected a finite number.")
        return score


class FaceCollator:
    """Rows, or faces that are read already -> pixel_values [batch, 3, side, side], quality [batch], and of what they have people, labels, rows and parts [batch]."""

    def __init__(self, processor: Any, reader: FaceReader, quality: Quality, find: bool = False):
        self.processor, self.reader, self.quality, self.find = processor, reader, quality, find

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        seen = [row if isinstance(row, Seen) else self.reader(row, self.find) for row in rows]
        pictures = [
            mirror(one.picture) if isinstance(row, Mapping) and row.get("mirrored") else one.picture
            for row, one in zip(rows, seen, strict=True)
        ]
        batch = {"pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"]}
        if self.quality.measure != "none":
            scores = [self.quality(row, one) for row, one in zip(rows, seen, strict=True)]
            batch["quality"] = torch.tensor(scores, dtype=torch.float32)
        first = rows[0] if isinstance(rows[0], Mapping) else {}
        for name in ("people", "rows", "parts"):
            if name in first:
                batch[name] = torch.tensor([int(row[name]) for row in rows])
        return batch | ({"labels": batch["people"]} if "people" in batch else {})


def mirror(picture: Any) -> Any:
    """A PIL picture with left and right exchanged."""
    from PIL import ImageOps

    return ImageOps.mirror(picture)


class MirroredRows:
    """Rows of which half, drawn anew in every epoch from their numbers, are to be mirrored."""

    def __init__(self, rows: Any, seed: int = 0):
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = np.random.default_rng((self.seed, self.epoch, int(index))).random()
        return {**self.rows[int(index)], "mirrored": bool(drawn < 0.5)}


def broken_rows(rows: Any, read: Callable[[Any], Any]) -> dict[int, str]:
    """Numbers of the rows that cannot be read, and why."""
    found = {}
    for number in range(len(rows)):
        try:
            read(rows[number])
        except DataError as error:
            found[number] = str(error)
    return found
