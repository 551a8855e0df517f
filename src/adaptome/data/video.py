"""Frames of videos and folders of pictures, those that are asked for and no others, decoded by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.readers.images import ENDINGS as PICTURES

ENDINGS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"})


def is_video(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in ENDINGS


def spread(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`: the middle one first, then always one that is farthest from those before."""
    if total <= 0:
        return []
    chosen = [total // 2]
    nearest = np.abs(np.arange(total) - chosen[0])
    while len(chosen) < min(count, total):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.abs(np.arange(total) - chosen[-1]))
    return chosen


def segments(total: int, count: int, rng: np.random.Generator | None = None) -> list[int]:
    """One of the numbers below `total` of each of `count` equal segments: the middle one, or one drawn by `rng`.

    Fewer than `count` are all taken, and the last one again and again.
    """
    if total <= 0:
        return []
    if total <= count:
        return [min(number, total - 1) for number in range(count)]
    edges = np.arange(count + 1) * total / count
    places = np.full(count, 0.5) if rng is None else rng.random(count)
    found = np.floor(edges[:-1] + places * (total / count)).astype(int)
    return [int(number) for number in np.minimum(found, total - 1)]


def frames(path: Path, count: int) -> list[tuple[int, Any]]:
    """At most `count` frames of a picture, a folder of pictures or a video, in the order of `spread`; see `taken`."""
    return taken(path, lambda total: spread(total, count))


def taken(path: Path, choose: Callable[[int], Sequence[int]]) -> list[tuple[int, Any]]:
    """The chosen frames of a picture, a folder of pictures or a video.

    Args:
        choose: how many there are -> the numbers of those wanted, in the order in which they are returned.

    Returns:
        numbers of frames from 0, and RGB PIL pictures; without those that a video says to have and has not.

    Raises:
        DataError: it does not exist, holds no frame, or cannot be read. MissingExtraError: a video, and PyAV is not installed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    if path.is_dir():
        files = pictures_in(path)
        wanted = choose(len(files))
        opened = {number: _picture(files[number]) for number in set(wanted)}
        return [(number, opened[number]) for number in wanted]
    if not is_video(path):
        return [(number, _picture(path)) for number in choose(1)]
    wanted = choose(_length(path))
    found: dict[int, Any] = {}
    last = max(wanted, default=-1)
    for number, frame in enumerate(_decoded(path)):
        if number in wanted:
            found[number] = frame.to_image().convert("RGB")
        if number >= last:
            break
    if not found:
        raise DataError(f"{path}: no frame could be decoded.")
    return [(number, found[number]) for number in wanted if number in found]


def pictures_in(folder: Path) -> list[Path]:
    """A folder's pictures, sorted.

    Raises:
        DataError: there are none.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{folder}: no pictures. Endings read: {', '.join(sorted(PICTURES))}.")
    return files


def _picture(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}") from error


def _length(path: Path) -> int:
    """Frames of a video: as its container tells, else counted."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            streams = container.streams.video
            if not streams:
                raise DataError(f"{path}: no pictures in it, sound at most.")
            told = int(streams[0].frames)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read as a video: {error}") from error
    return told if told > 0 else sum(1 for _ in _decoded(path))


def _decoded(path: Path) -> Iterator[Any]:
    av = _av()
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            yield from container.decode(video=0)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read as a video: {error}") from error


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "video") from None
    return av
