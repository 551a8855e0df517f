"""Clips as a model of several streams takes them: frames, and what is known of the face beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptome.core.errors import DataError
from adaptome.data.faces.finding import FaceFinder
from adaptome.data.faces.streams import (
    beside,
    described,
    dotted,
    landmarks_of,
    painted,
    parsing_of,
    read_descriptions,
)
from adaptome.data.geometry import Geometry
from adaptome.data.video import segments, taken

#: streams in the order of the model
FRAMES, PARSING, LANDMARKS, DESCRIPTION = "frames", "parsing", "landmarks", "description"
#: changes that all streams of a training clip undergo alike
GEOMETRY = Geometry(mirror=True, degrees=4, scale=(1.0, 1.25))


@dataclass(frozen=True)
class Sources:
    """Where streams are that the data has no column of: folders of parsing and landmarks, and a file of descriptions."""

    parsing: Path | None = None
    landmarks: Path | None = None
    descriptions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parsing: str | None, landmarks: str | None, descriptions: str | None) -> Sources:
        """By their paths.

        Raises:
            DataError: one does not exist.
        """
        for name, path in (("parsing", parsing), ("landmarks", landmarks), ("descriptions", descriptions)):
            if path is not None and not Path(path).expanduser().exists():
                raise DataError(f"task.{name}={path!r}: no such file or folder.")
        texts = read_descriptions(Path(descriptions).expanduser()) if descriptions else {}
        masks, places = (Path(one).expanduser() if one else None for one in (parsing, landmarks))
        return cls(masks, places, texts)

    def find(self, row: Mapping[str, Any], near: Path | None = None) -> dict[str, Any]:
        """What there is of each stream for a row: an array, a path, or words; a stream that is not there is left out.

        Args:
            row: with `video`, and perhaps `clip` (its name), the streams themselves, and `missing` (streams joined by '+').
            near: the folder that paths in the row are relative to.
        """
        video = path_of(row.get("video"))
        name = str(row.get("clip") or (video.stem if video is not None else ""))
        found: dict[str, Any] = {FRAMES: video if video is not None else row.get("video")}
        for stream, root in ((PARSING, self.parsing), (LANDMARKS, self.landmarks)):
            given = row.get(stream)
            if isinstance(given, str | Path):
                found[stream] = (near or Path()) / given if str(given) else None
            else:
                found[stream] = given if given is not None or root is None else beside(root, name)
        found[DESCRIPTION] = row.get(DESCRIPTION) or described(dict(self.descriptions), name)
        lacking = set(str(row.get("missing") or "").split("+"))
        return {stream: one for stream, one in found.items() if one is not None and stream not in lacking}


@dataclass(frozen=True)
class Clipping:
    """How a clip is looked at.

    Args:
        streams: those that the model has. frames: how many of each clip. size: side of the pictures.
        find: crops faces out of frames.
    """

    streams: tuple[str, ...]
    frames: int
    size: int
    find: FaceFinder

    def seen(
        self, found: Mapping[str, Any], rng: np.random.Generator | None = None, change: bool = False
    ) -> dict[str, Any]:
        """Streams of pictures, each [T, size, size, 3] of uint8 and None where missing; `strip`, the frames as PIL pictures.

        Args:
            found: what there is of the clip, by stream.
            rng: draws the frames; None for the middle of each segment. change: draw a change of all pictures alike too.

        Raises:
            DataError: there is nothing of a clip that can be seen, or it cannot be read; names it.
        """
        numbers, pictures = self._frames(found.get(FRAMES), rng)
        if not pictures:
            count = _length(found)
            numbers = segments(count, self.frames, rng)
        # of a frame that was cropped here, points in its own pixels lie elsewhere
        frame = pictures[0].size if pictures and not self.find.looks else None
        drawn = GEOMETRY.draw(rng, self.size, self.size) if rng is not None and change else None
        made: dict[str, Any] = dict.fromkeys(self.streams)
        if pictures and FRAMES in self.streams:
            made[FRAMES] = [self._squared(np.asarray(one)) for one in pictures]
        if PARSING in self.streams and found.get(PARSING) is not None:
            masks = parsing_of(found[PARSING], numbers)
            flipped = drawn is not None and drawn.flipped
            made[PARSING] = [self._squared(m if m.ndim == 3 else painted(m, flipped)) for m in masks]
        if LANDMARKS in self.streams and found.get(LANDMARKS) is not None:
            places = landmarks_of(found[LANDMARKS], numbers, frame)
            made[LANDMARKS] = [self._squared(p) if p.ndim == 3 else dotted(p, self.size) for p in places]
        for stream, each in made.items():
            if each is not None and stream != DESCRIPTION:
                made[stream] = np.stack(each if drawn is None else [drawn.picture(one) for one in each])
        if drawn is not None and rng is not None and made.get(FRAMES) is not None:
            made[FRAMES] = jittered(made[FRAMES], rng)
        made[DESCRIPTION] = found.get(DESCRIPTION) if DESCRIPTION in self.streams else None
        return {**made, "strip": pictures}

    def _frames(self, video: Any, rng: np.random.Generator | None) -> tuple[list[int], list[Any]]:
        """Numbers and PIL pictures of T frames, those without a face left out and others in their place."""
        from PIL import Image

        if video is None:
            return [], []
        if isinstance(video, Path):
            pairs = taken(video, lambda total: segments(total, self.frames, rng))
        else:
            array = np.asarray(video, np.uint8)
            if array.ndim != 4 or array.shape[-1] != 3:
                raise DataError(f"a clip is an array {list(array.shape)}; expected [frames, height, width, 3].")  # fmt: skip
            pairs = [(n, Image.fromarray(array[n])) for n in segments(len(array), self.frames, rng)]
        pairs = self.find(video, pairs)
        pairs += [pairs[-1]] * (self.frames - len(pairs))
        return [number for number, _ in pairs], [picture for _, picture in pairs]

    def _squared(self, pixels: np.ndarray) -> np.ndarray:
        from PIL import Image

        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        picture = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(picture)


class ClipCollator:
    """Rows of streams -> pixel_values [batch, streams, T, 3, h, w], available [batch, streams], input_ids, and labels where there are.

    Args:
        processor: makes pixels of pictures, and ids of words.
        streams: of the model, in order.
    """

    def __init__(self, processor: Any, streams: Sequence[str]):
        self.processor, self.streams = processor, list(streams)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        there = [[row.get(stream) is not None for stream in self.streams] for row in rows]
        batch = {"available": torch.tensor(there)}
        visual = [stream for stream in self.streams if stream != DESCRIPTION]
        example = next((row[s] for row in rows for s in visual if row.get(s) is not None), None)
        if example is not None:
            empty = np.zeros_like(example)
            arrays = [row[s] if row.get(s) is not None else empty for row in rows for s in visual]
            shape = (len(rows), len(visual), len(example))
            batch["pixel_values"] = self.processor.pixels(np.concatenate(arrays)).unflatten(0, shape)
        if DESCRIPTION in self.streams:
            batch["input_ids"] = self.processor.ids([row.get(DESCRIPTION) or "" for row in rows])
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def path_of(value: Any) -> Path | None:
    """A path that is given as text, or as the hub stores files; None for what is none."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return Path(value) if isinstance(value, str | Path) else None


def without_words(text: str, words: Sequence[str]) -> str:
    """The text without these words, whole and in any case, for a description must not name the class."""
    pattern = "|".join(re.escape(word) for word in words)
    return re.sub(rf"\s*\b(?:{pattern})\b", "", text, flags=re.IGNORECASE).strip() if words else text


def jittered(pictures: np.ndarray, rng: np.random.Generator, strength: float = 0.5) -> np.ndarray:
    """Brightness and contrast of all pictures [T, h, w, 3] changed alike, by up to `strength`."""
    bright, contrast = rng.uniform(1 - strength, 1 + strength, 2)
    mean = pictures.mean()
    return (((pictures - mean) * contrast + mean) * bright).round().clip(0, 255).astype(np.uint8)


def _length(found: Mapping[str, Any]) -> int:
    """Frames of a clip of which only parsing or landmarks are there.

    Raises:
        DataError: there is neither.
    """
    from adaptome.data.faces.streams import array_of
    from adaptome.data.video import pictures_in

    given = found.get(PARSING, found.get(LANDMARKS))
    if given is None:
        if found.get(DESCRIPTION):
            return 1
        raise DataError("a clip of which there is nothing to see: no frames, parsing, landmarks or description.")  # fmt: skip
    if isinstance(given, Path):
        return len(pictures_in(given)) if given.is_dir() else len(array_of(given, 3))
    return len(given)
