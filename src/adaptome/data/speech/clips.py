"""Clips of people who speak: their sound and the pictures of their mouths, from files.

sound     wav, flac and the like, or the track of a video          {"array", "sampling_rate"} and {"path", "bytes"} too
pictures  a video, grey; or an .npz with `frames` [time, height, width] of uint8, and `fps` where that is not 25
features  .npy, .npz or .safetensors of [time, width], `features` where there are several, in place of either
mouth     where it is in the pictures: .json, .csv or .npz with `boxes` [4] or [time, 4] (x0, y0, x1, y1), or `landmarks` [time, 68 or n, 2]
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptome.core.errors import DataError, MissingExtraError, nearest
from adaptome.data import sound
from adaptome.data.readers.sounds import ENDINGS as SOUNDS
from adaptome.data.video import ENDINGS as VIDEOS

FEATURES = frozenset({".npy", ".npz", ".safetensors"})
FPS = 25.0
#: a mouth's box is so many times as wide as the mouth, and its way is smoothed over so many pictures, where landmarks tell it
AROUND, SMOOTHED = 2.0, 12
#: the mouth among the 68 landmarks of a face (iBUG)
_MOUTH = slice(48, 68)


class Frames(NamedTuple):
    """Grey pictures [time, height, width] of uint8, and how many there are a second."""

    pictures: np.ndarray
    fps: float


def named(source: Any, where: str) -> str:
    """What to call a source in a message."""
    path = source.get("path") if isinstance(source, Mapping) else source
    return str(path) if isinstance(path, str | Path) else where


def require_file(source: Any, where: str) -> Path | None:
    """The path of a source that is a file; None where it is none.

    Raises:
        DataError: there is no such file.
    """
    given = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
    if not isinstance(given, str | Path):
        return None
    path = Path(given).expanduser()
    if not path.is_file():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, there)
        raise DataError(f"{where}: no file {path}.{f' Near names: {chr(44).join(close)}.' if close else ''}")
    return path


# -- sound -----------------------------------------------------------------------------------------------------------


def read_sound(source: Any, where: str) -> tuple[np.ndarray, int]:
    """Samples [n] as float32 and their rate.

    Raises:
        DataError: as `data.sound.decode`; or a video without a track of sound.
    """
    path = None if isinstance(source, Mapping) and "array" in source else require_file(source, where)
    if path is None or path.suffix.lower() not in VIDEOS:
        return sound.decode(source, where)
    with _opened(path) as (av, container):
        if not container.streams.audio:
            raise DataError(f"{path} has no track of sound. Read the lips alone: task.modalities=[video].")
        rate = int(container.streams.audio[0].rate)
        resampler = av.AudioResampler("flt", "mono", rate)
        parts = [made.to_ndarray()[0] for frame in container.decode(audio=0) for made in resampler.resample(frame)]  # fmt: skip
        parts += [made.to_ndarray()[0] for made in resampler.resample(None)]
    if not parts:
        raise DataError(f"{path}: its track of sound holds no samples.")
    return np.concatenate(parts).astype(np.float32), rate


def sound_seconds(source: Any, where: str) -> float:
    """How long a sound is, by its header."""
    path = None if isinstance(source, Mapping) and "array" in source else require_file(source, where)
    if path is None or path.suffix.lower() not in VIDEOS:
        samples, rate = sound.header(source, where)
        return samples / rate
    with _opened(path) as (_, container):
        if not container.streams.audio:
            raise DataError(f"{path} has no track of sound. Read the lips alone: task.modalities=[video].")
        return _seconds(container, container.streams.audio[0])


def has_sound(path: Path) -> bool:
    """Whether a file has sound: one of sounds, or a video with a track of it."""
    if path.suffix.lower() in SOUNDS:
        return True
    with _opened(path) as (_, container):
        return bool(container.streams.audio)


# -- pictures --------------------------------------------------------------------------------------------------------


def read_frames(source: Any, where: str) -> Frames:
    """The pictures of a video.

    Raises:
        DataError: a file that cannot be read, or holds no picture.
    """
    path = require_file(source, where)
    if path is not None and path.suffix.lower() in VIDEOS:
        with _opened(path) as (_, container):
            if not container.streams.video:
                raise DataError(f"{path} has no pictures, sound at most.")
            fps = float(container.streams.video[0].average_rate or FPS)
            pictures = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        if not pictures:
            raise DataError(f"{path}: no picture could be decoded.")
        return Frames(np.stack(pictures), fps)
    held = _arrays(source, where)
    found = held.get("frames")
    if found is None or found.ndim != 3 or found.dtype != np.uint8 or not len(found):
        shape = "no `frames`" if found is None else f"{found.dtype} {list(found.shape)}"
        raise DataError(f"{named(source, where)}: `frames` must be uint8 [time, height, width]; found {shape}.")  # fmt: skip
    return Frames(found, float(held.get("fps", FPS)))


def video_seconds(source: Any, where: str) -> float:
    """How long a video is, by its header."""
    path = require_file(source, where)
    if path is None or path.suffix.lower() not in VIDEOS:
        frames = read_frames(source, where)
        return len(frames.pictures) / frames.fps
    with _opened(path) as (_, container):
        if not container.streams.video:
            raise DataError(f"{path} has no pictures, sound at most.")
        return _seconds(container, container.streams.video[0])


def at_rate(frames: Frames, fps: float = FPS) -> np.ndarray:
    """The pictures at another rate: for each time the nearest one."""
    if abs(frames.fps - fps) < 0.01:
        return frames.pictures
    count = max(1, round(len(frames.pictures) * fps / frames.fps))
    at = (np.arange(count) * frames.fps / fps).round().astype(int)
    return np.asarray(frames.pictures[at.clip(max=len(frames.pictures) - 1)])


def mouths(frames: Frames, boxes: np.ndarray | None, side: int) -> Frames:
    """Squares of this side: the pictures' middle squares, or what lies in their boxes [time, 4]."""
    from PIL import Image

    time, height, width = frames.pictures.shape
    if boxes is None:
        half = min(height, width) / 2
        boxes = np.tile([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half], (time, 1))
        if (height, width) == (side, side):
            return frames
    cut = [
        Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR, box=_within(box, width, height))
        for one, box in zip(frames.pictures, boxes, strict=True)
    ]
    return Frames(np.stack([np.asarray(one) for one in cut]), frames.fps)


def read_mouth(source: Any, time: int, where: str) -> np.ndarray:
    """Boxes [time, 4] of a mouth, from a file of boxes or landmarks.

    Raises:
        DataError: the file cannot be read, holds neither, or other numbers of pictures.
    """
    name = named(source, where)
    held = _arrays(source, where)
    if "boxes" in held:
        boxes = np.atleast_2d(np.asarray(held["boxes"], float))
    elif "landmarks" in held:
        boxes = _around(np.asarray(held["landmarks"], float), name)
    else:
        raise DataError(f"{name}: neither `boxes` nor `landmarks`; found {', '.join(held) or 'nothing'}.")
    if boxes.shape == (1, 4):
        boxes = boxes.repeat(time, 0)
    if boxes.shape != (time, 4):
        raise DataError(f"{name}: boxes {list(boxes.shape)} for {time} pictures; give [4] or [{time}, 4].")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise DataError(f"{name}: a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1; found {boxes[0].tolist()}.")  # fmt: skip
    return boxes


def _around(points: np.ndarray, name: str) -> np.ndarray:
    if points.ndim != 3 or points.shape[2] != 2:
        raise DataError(f"{name}: landmarks {list(points.shape)}; expected [time, points, 2].")
    points = points[:, _MOUTH] if points.shape[1] == 68 else points
    low, high = points.min(1), points.max(1)
    centre, half = _smooth((low + high) / 2), AROUND * (high[:, 0] - low[:, 0]).mean() / 2
    return np.concatenate([centre - half, centre + half], 1)


def _smooth(track: np.ndarray) -> np.ndarray:
    size = min(SMOOTHED, len(track))
    padded = np.pad(track, ((size // 2, size - 1 - size // 2), (0, 0)), mode="edge")
    return np.stack([padded[k : k + len(track)] for k in range(size)]).mean(0)


def _within(box: np.ndarray, width: int, height: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
    return x0, y0, max(min(x1, float(width)), x0 + 1), max(min(y1, float(height)), y0 + 1)


# -- features, and files of arrays -----------------------------------------------------------------------------------


def is_features(source: Any) -> bool:
    """Whether a source is a file of features by its ending; an .npz of pictures is told by what it holds."""
    path = source.get("path") if isinstance(source, Mapping) else source
    return isinstance(path, str | Path) and Path(path).suffix.lower() in FEATURES


def read_features(source: Any, width: int, where: str) -> np.ndarray:
    """Features [time, width] as float32.

    Raises:
        DataError: of another shape.
    """
    held = _arrays(source, where)
    found = held.get("features", next(iter(held.values())) if len(held) == 1 else None)
    if found is None or found.ndim != 2 or found.shape[1] != width or not len(found):
        shape = f"{list(held)} " if found is None else list(found.shape)
        raise DataError(f"{named(source, where)}: features must be [time, {width}]; found {shape}.")
    return np.asarray(found, np.float32)


def _arrays(source: Any, where: str) -> dict[str, Any]:
    """The arrays of a file of numbers; never a pickle."""
    name, path = named(source, where), require_file(source, where)
    ending = ".npz" if path is None else path.suffix.lower()
    try:
        if ending == ".json":
            held = json.loads(path.read_text(encoding="utf-8"))  # type: ignore[union-attr]
            return {k: np.asarray(v, float) for k, v in (held if isinstance(held, dict) else {"boxes": held}).items()}  # fmt: skip
        if ending == ".csv":
            rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))  # type: ignore[union-attr]
            return {"boxes": np.array([[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in rows])}  # fmt: skip
        if ending == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))  # type: ignore[arg-type]
        if ending in (".npz", ".npy"):
            content = source["bytes"] if path is None else path.read_bytes()
            held = np.load(io.BytesIO(content), allow_pickle=False)
            return {"features": held} if isinstance(held, np.ndarray) else {key: held[key] for key in held.files}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} cannot be read as arrays: {error}") from error
    raise DataError(f"{name}: arrays are read from .npz, .npy, .safetensors, .json and .csv.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "video") from None
    try:
        with av.open(str(path)) as container:
            yield av, container
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read as a video: {error}") from error


def _seconds(container: Any, stream: Any) -> float:
    """The length of a track; where its header does not tell, that of the file."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / 1e6
