"""Frames of videos and pictures, few and well spread, decoded by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
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


def frames(path: Path, count: int) -> list[tuple[int, Any]]:
    """At most `count` frames of a picture, a folder of pictures or a video, in the order of `spread`.

    Returns:
        numbers of frames from 0, and RGB PIL pictures.

    Raises:
        DataError: it does not exist, holds no frame, or cannot be read. MissingExtraError: a video, and PyAV is not installed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in PICTURES)
        if not files:
            raise DataError(f"{path}: no pictures. Endings read: {', '.join(sorted(PICTURES))}.")
        return [(number, _picture(files[number])) for number in spread(len(files), count)]
    if not is_video(path):
        return [(0, _picture(path))]
    wanted = spread(_length(path), count)
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
