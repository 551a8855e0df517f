"""Crop the faces of a data set of videos, once, so that training reads pictures.

    python -m adaptome.data.faces.extract videos/FF data --detector "python detect.py"

reads `videos/FF/<source>/<video>.mp4` (or folders of frames) and writes `data/FF/<source>/<video>/<frame>.png` and the list of them,
`data/FF.txt`. A video that is there already is passed over, so that a call that was cut short goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adaptome.core.errors import AdaptomeError, DataError
from adaptome.core.files import atomic_folder, write_atomic
from adaptome.data.faces.crops import SCALE, Boxes, Detector, Face, crop, largest
from adaptome.data.readers.images import ENDINGS
from adaptome.data.video import frames, is_video

Find = Callable[[Path, Sequence[tuple[int, object]]], list[list[Face]]]


def extract(source: Path, out: Path, find: Find | None, count: int = 32, scale: float = SCALE) -> list[str]:
    """Crops of the largest face in at most `count` frames of each video.

    Args:
        source: the data set's folder. out: where its folder and its list are written.
        find: a video's path and frames -> the faces in each frame; None takes whole frames.

    Returns:
        the videos in which no face was found.

    Raises:
        DataError: there are no videos, or one cannot be read.
    """
    given = sorted(_videos(source))
    if not given:
        raise DataError(
            f"{source}: no videos; expected {source.name}/source/video.mp4, or folders of frames."
        )
    empty, listed = [], []
    for path in given:
        target = out / source.name / path.parent.name / (path.name if path.is_dir() else path.stem)
        if not target.is_dir():
            faces = list(_faces(path, find, count, scale))
            if not faces:
                empty.append(str(path))
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(target) as staging:
                for number, picture in faces:
                    picture.save(staging / f"{number:06}.png")  # type: ignore[attr-defined]
        listed += [f.relative_to(out).as_posix() for f in sorted(target.glob("*.png"))]
    write_atomic(out / f"{source.name}.txt", "".join(f"{name}\n" for name in listed))
    return empty


def _faces(path: Path, find: Find | None, count: int, scale: float) -> Iterator[tuple[int, object]]:
    seen = frames(path, count if find is None else 2 * count)
    if find is None:
        yield from seen
        return
    found = [(n, p, face) for (n, p), at in zip(seen, find(path, seen), strict=True) if (face := largest(at))]
    yield from ((number, crop(picture, face, scale)) for number, picture, face in found[:count])


def _videos(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*/*"):
        if is_video(path) or (path.is_dir() and any(f.suffix.lower() in ENDINGS for f in path.iterdir())):
            yield path


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 where at least one video has a face."""
    asked = argparse.ArgumentParser(prog="python -m adaptome.data.faces.extract", description=str(__doc__).split("\n")[0])  # fmt: skip
    asked.add_argument("source", type=Path, help="the data set's folder: source/video.mp4 in it")
    asked.add_argument("out", type=Path, help="where its crops go")
    asked.add_argument("--detector", help="a program that finds faces, see adaptome.data.faces.crops")
    asked.add_argument("--boxes", type=Path, help="or a file of their boxes")
    asked.add_argument("--frames", type=int, default=32, help="of each video")
    asked.add_argument("--scale", type=float, default=SCALE, help="side of a crop, of the face's box's")
    told = asked.parse_args(argv)
    find: Find | None = None
    try:
        if told.detector:
            detector = Detector(told.detector)
            find = lambda path, seen: detector([picture for _, picture in seen])  # noqa: E731
        elif told.boxes:
            boxes = Boxes(told.boxes)
            find = lambda path, seen: [boxes.of(path, number) for number, _ in seen]  # noqa: E731
        empty = extract(told.source, told.out, find, told.frames, told.scale)
    except AdaptomeError as error:
        print(error, file=sys.stderr)
        return 1
    for path in empty:
        print(f"{path}: no face was found", file=sys.stderr)
    print(told.out / f"{told.source.name}.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
