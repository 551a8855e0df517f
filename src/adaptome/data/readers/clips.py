"""Clips with one label each, as data sets of facial expressions in videos list them.

    DFEW/00001 16 3                      a list: folder of frames or video, how many frames (or without), label; one on a line
    happiness/00001.mp4                  a folder: a class, and in it videos or folders of frames

A clip's path is relative to the list's own folder, to the one above, or to where the command runs. A number in the list's name after
`set_` or `fold` is the clips' fold: of DFEW_set_3_test.txt it is 3.
"""

from __future__ import annotations

import re
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of
from adaptome.data.video import is_video

FOLD = re.compile(r"(?:set|fold)_?-?(\d+)", re.IGNORECASE)


@reader("clips", ".clips", folders=True)
def read_clips(path: Path, options: ReadOptions) -> Table:
    """Columns video (a path), label, clip (its name: what stands in the list, without an ending) and fold.

    Whether a clip can be read is found where it is used: a list of thousands of videos may lack some.

    Raises:
        DataError: no clips, or a line that is none.
    """
    rows = _below(path) if path.is_dir() else _listed(path, options)
    if not rows:
        raise DataError(
            f"{path}: no clips. Expected class/clip.mp4, class/clip/frame.png, or a list of them."
        )
    fold = FOLD.search(path.stem)
    clips, labels, names, lines = zip(*rows, strict=True)
    return Table(
        str(path),
        {
            "video": [str(clip.absolute()) for clip in clips],
            "label": list(labels),
            "clip": list(names),
            "fold": [fold[1] if fold else path.stem] * len(rows),
        },
        list(lines),
    )


Row = tuple[Path, int | str, str, int]  # clip, label, name, line


def _listed(path: Path, options: ReadOptions) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        if not line.strip():
            continue
        # a path may have spaces in it; what follows it has none
        found = re.fullmatch(r"(\S.*?)(?:[\s,]+(\d+))?[\s,]+(\S+)", line.strip())
        if found is None:
            raise DataError(
                f"{path}, line {number}: {line.strip()!r} is no clip with its label. Expected: path frames label."
            )
        name, _, label = found.groups()
        places = (path.parent / name, path.parent.parent / name, Path(name))
        clip = next((place for place in places if place.exists()), places[0])
        rows.append((clip, int(label) if label.isdigit() else label, _name(Path(name)), number))
    if any(isinstance(label, str) for _, label, _, _ in rows):  # a column holds one type
        rows = [(clip, str(label), name, line) for clip, label, name, line in rows]
    return rows


def _below(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for label in sorted(f for f in folder.iterdir() if f.is_dir()):
        clips = sorted(f for f in label.iterdir() if is_video(f) or _holds_frames(f))
        rows += [
            (clip, label.name, _name(clip.relative_to(folder)), len(rows) + i)
            for i, clip in enumerate(clips, 1)
        ]
    return rows


def _holds_frames(folder: Path) -> bool:
    return folder.is_dir() and any(f.suffix.lower() in ENDINGS for f in folder.iterdir())


def _name(clip: Path) -> str:
    return (clip.with_suffix("") if is_video(clip) else clip).as_posix()
