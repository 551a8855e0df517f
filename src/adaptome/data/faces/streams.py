"""What is known of a face's clip beside its frames: parts of the face and landmarks, as pictures of the frames' size; and words.

    parsing     a folder of masks, one a frame in order, or .npy/.npz [n, h, w] of part numbers: painted, a colour for each part; masks in
                colours stay as they are
    landmarks   .npy, .npz or .json [n, points, 2], in pixels of the frame or from 0 to 1: dots on black; or a folder of drawn pictures
    description words of one clip, by a .json {clip: text} or a table with the columns clip and text (.csv, .jsonl)

What belongs to a clip is found under its whole name in the list, or under the last part of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.textfile import read_text
from adaptome.data.video import pictures_in, taken

ARRAYS = (".npz", ".npy", ".json")
#: parts that change places when a face is mirrored, by the numbers of BiSeNet's face parsing: brows, eyes, ears
SIDES = ((2, 3), (4, 5), (7, 8))
#: a colour for each number of a part; 0, what is no face, is black
COLOURS = np.array(
    [
        [(37 * n + 80) % 256, (101 * n + 40) % 256, (173 * n + 120) % 256] if n else [0, 0, 0]
        for n in range(256)
    ],
    np.uint8,
)


def beside(root: Path, clip: str) -> Path | None:
    """What a folder holds for a clip: a folder of pictures, or a file of arrays; None where there is nothing."""
    for name in (clip, Path(clip).name):
        if (root / name).is_dir():
            return root / name
        found = next((p for ending in ARRAYS if (p := root / f"{name}{ending}").is_file()), None)
        if found is not None:
            return found
    return None


def painted(mask: np.ndarray, mirrored: bool = False, sides: Sequence[Sequence[int]] = SIDES) -> np.ndarray:
    """A mask of part numbers [h, w] as a picture [h, w, 3].

    Args:
        mirrored: the mask was mirrored left to right, so that the left parts are now the right ones.
    """
    numbers = np.arange(256)
    for left, right in sides if mirrored else ():
        numbers[[left, right]] = right, left
    return COLOURS[numbers[np.asarray(mask, np.uint8)]]


def dotted(points: np.ndarray, side: int) -> np.ndarray:
    """Points [n, 2], from 0 to 1 to the right and down, as white dots on black [side, side, 3]; what lies outside is left out."""
    canvas = np.zeros((side, side, 3), np.uint8)
    reach = side // 112
    x, y = np.floor(np.asarray(points, float).reshape(-1, 2).T * side).astype(int)
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            inside = (x + dx >= 0) & (x + dx < side) & (y + dy >= 0) & (y + dy < side)
            canvas[(y + dy)[inside], (x + dx)[inside]] = 255
    return canvas


def array_of(path: Path, dims: int) -> np.ndarray:
    """The numbers of an .npy, .npz (its first array) or .json file, with so many dimensions.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".json":
            found = np.asarray(json.loads(read_text(path)), float)
        else:
            loaded: Any = np.load(path, allow_pickle=False)
            found = loaded[loaded.files[0]] if hasattr(loaded, "files") else loaded
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{path} cannot be read as numbers: {error}") from error
    if found.ndim != dims or not len(found) or not np.isfinite(found.astype(float)).all():
        raise DataError(
            f"{path} holds an array {list(found.shape)}; expected {dims} dimensions of numbers, the first of them frames."
        )
    return found


def parsing_of(given: Any, numbers: Sequence[int]) -> list[np.ndarray]:
    """Masks [h, w] (or pictures [h, w, 3]) of these frames; the last one stands for what lies behind it.

    Args:
        given: an array, or a path as `beside` finds it.
    """
    if isinstance(given, Path) and given.is_dir():
        count = len(pictures_in(given))
        return [_mask(picture) for _, picture in taken(given, lambda _: [min(n, count - 1) for n in numbers])]
    masks = array_of(given, 3) if isinstance(given, Path) else np.asarray(given)
    return [masks[min(n, len(masks) - 1)].astype(np.uint8) for n in numbers]


def landmarks_of(given: Any, numbers: Sequence[int], frame: tuple[int, int] | None) -> list[np.ndarray]:
    """Points [n, 2] from 0 to 1, or drawn pictures [h, w, 3], of these frames; the last one stands for what lies behind it.

    Args:
        frame: width and height of a frame, by which points in pixels are told; None: not known, or cropped.

    Raises:
        DataError: points in pixels of frames whose size is not known, or of another form.
    """
    if isinstance(given, Path) and given.is_dir():
        count = len(pictures_in(given))
        found = taken(given, lambda _: [min(n, count - 1) for n in numbers])
        return [np.asarray(picture) for _, picture in found]
    points = array_of(given, 3) if isinstance(given, Path) else np.asarray(given, float)
    where = str(given) if isinstance(given, Path) else "landmarks"
    if points.ndim != 3 or points.shape[-1] != 2:
        raise DataError(f"{where}: an array {list(points.shape)}; expected [frames, points, 2].")
    if points.max() > 2:  # shares of a frame hardly lie beyond it
        if frame is None:
            raise DataError(
                f"{where}: points in pixels, and no frames as they were that tell the size. Give them from 0 to 1, of the face's picture."
            )
        points = points / np.asarray(frame, float)
    return [points[min(n, len(points) - 1)] for n in numbers]


def _mask(picture: Any) -> np.ndarray:
    """A mask's picture as numbers where it is grey, else in its colours."""
    pixels = np.asarray(picture)
    grey = (pixels == pixels[..., :1]).all()
    return np.ascontiguousarray(pixels[..., 0] if grey else pixels)


def read_descriptions(path: Path) -> dict[str, str]:
    """The words of each clip, by its name.

    Raises:
        DataError: the file cannot be read, or is not as expected.
    """
    text = read_text(path)
    try:
        if path.suffix == ".json":
            held = json.loads(text)
            rows = held if isinstance(held, list) else [{"clip": k, "text": v} for k, v in held.items()]
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text)))
        found = {str(row["clip"]): row["text"] for row in rows}
    except KeyError as error:
        there = sorted({key for row in rows for key in row})
        raise DataError(
            f"{path}: no {error} in each row.{did_you_mean(str(error.args[0]), there)} Expected the columns clip and text."
        ) from None
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as descriptions: {error}. Expected {{clip: text}}, or rows of clip and text."
        ) from error
    wrong = next((clip for clip, words in found.items() if not isinstance(words, str)), None)
    if wrong is not None:
        raise DataError(f"{path}: the description of {wrong!r} is no text.")
    return found


def described(texts: dict[str, str], clip: str) -> str | None:
    """A clip's words: under its whole name, or the last part of it."""
    return texts.get(clip, texts.get(Path(clip).name))
