"""Speech with its transcripts, as data sets of sound and of talking faces have it.

    main/6330/00001.mp4  00001.txt                       LRS2, LRS3: a text beside each clip, "Text:  HELLO WORLD" or the words alone
    train.txt: 6330/00001                                a list of clips, relative to its folder or to `main` or `pretrain` in it
    84/121123/84-121123.trans.txt                        LibriSpeech: "84-121123-0000 GO DO YOU HEAR", the .flac beside
    labels.csv: lrs3,6330/00001.mp4,75,,hello world      auto-avsr's lists: set, path, pictures, tokens, text; files below the list's folder
                                                          or <set>/, the .wav beside or the video's own track

A clip's sound is the .wav or .flac beside it, else the video's own track; where its mouth is stands in a .json, .csv or .npz beside that ends in .mouth.
Tables (.csv, .jsonl) with columns audio, video, mouth and text need no reader of their own.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of, read_text

SOUND = (".wav", ".flac", ".ogg", ".mp3")
VIDEO = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".npz")
MOUTH = (".mouth.json", ".mouth.csv", ".mouth.npz")
#: where a data set's lists have their clips
_WITHIN = ("", "main", "pretrain", "trainval", "test", "train")


class Clip(NamedTuple):
    """Paths of a clip's parts, and its text."""

    audio: str | None
    video: str | None
    mouth: str | None
    text: str
    place: str


@reader("speech", folders=True)
def read_speech(path: Path, options: ReadOptions) -> Table:
    """Columns audio, video, mouth (paths, or None) and text.

    Raises:
        DataError: no clip, a clip without its text, or a text without its clip.
    """
    found = _folder(path, options.encoding) if path.is_dir() else _listed(path, options.encoding)
    if not found:
        raise DataError(
            f"{path}: no clips with texts. A .txt of the same name beside each, or LibriSpeech's *.trans.txt."
        )
    return _table(path, found)


@reader("auto-avsr")
def read_auto_avsr(path: Path, options: ReadOptions) -> Table:
    """The same columns, from auto-avsr's lists without a header.

    Raises:
        DataError: a line of another form, or a clip that is not there.
    """
    found = []
    for number, row in enumerate(csv.reader(lines_of(path, options.encoding)), 1):
        if not row:
            continue
        where = f"{path}, line {number}"
        if len(row) < 5:
            raise DataError(
                f"{where}: expected set, path, pictures, tokens and text; found {len(row)} parts."
            )
        name = Path(row[1])
        roots = (path.parent / row[0], path.parent, path.parent.parent / row[0])
        clip = next((root / name for root in roots if (root / name).is_file()), None)
        if clip is None:
            raise DataError(f"{where}: no file {name} in {', '.join(map(str, roots))}.")
        found.append(clip_of(clip, ",".join(row[4:]).strip(), where))
    return _table(path, found)


def _table(path: Path, found: list[Clip]) -> Table:
    columns = {name: [getattr(clip, name) for clip in found] for name in ("audio", "video", "mouth", "text")}
    kept = {name: values for name, values in columns.items() if any(values) or name == "text"}
    places = [clip.place for clip in found]
    return Table(str(path), kept, range(1, len(found) + 1), unit="clip", places=places)


def _folder(path: Path, encoding: str) -> list[Clip]:
    lists = sorted(path.rglob("*.trans.txt"))
    if lists:
        return [clip for one in lists for clip in _spoken(one, encoding)]
    found = []
    for file in sorted(f for f in path.rglob("*") if f.suffix.lower() in VIDEO + SOUND):
        if is_part(file):
            continue
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise DataError(f"{file}: no {text.name} with its words beside it.")
        found.append(clip_of(file, words(read_text(text, encoding)), str(file)))
    return found


def _spoken(path: Path, encoding: str) -> list[Clip]:
    """The clips of one of LibriSpeech's lists."""
    found = []
    for number, line in enumerate(lines_of(path, encoding), 1):
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        file = _beside(path.parent / f"{name}.x", SOUND)
        if file is None:
            raise DataError(f"{path}, line {number}: no sound {name} beside it ({', '.join(SOUND)}).")
        found.append(Clip(str(file), None, None, text.strip(), f"{path}, line {number}"))
    return found


def _listed(path: Path, encoding: str) -> list[Clip]:
    if path.name.endswith(".trans.txt"):
        return _spoken(path, encoding)
    found = []
    for number, line in enumerate(lines_of(path, encoding), 1):
        parts = line.split()
        if not parts:
            continue
        where = f"{path}, line {number}"
        file = next((f for w in _WITHIN if (f := _beside(path.parent / w / f"{parts[0]}.x", VIDEO + SOUND))), None)  # fmt: skip
        if file is None:
            raise DataError(
                f"{where}: no clip {parts[0]!r} in {path.parent} or its {', '.join(_WITHIN[1:])}."
            )
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise DataError(f"{where}: {file} has no {text.name} with its words beside it.")
        found.append(clip_of(file, words(read_text(text, encoding)), where))
    return found


def words(content: str) -> str:
    """What is said, of the text beside a clip: the line after "Text:", else the first line."""
    lines = content.strip().splitlines() or [""]
    told = next((line for line in lines if line.lower().startswith("text:")), None)
    return (lines[0] if told is None else told[5:]).strip()


def clip_of(file: Path, text: str, place: str) -> Clip:
    is_sound = file.suffix.lower() in SOUND
    beside = file if is_sound else _beside(file, SOUND)
    # an .npz of pictures has no sound; a video has its own
    own = beside or (None if file.suffix.lower() == ".npz" else file)
    mouth = next((f for ending in MOUTH if (f := file.with_suffix(ending)).is_file()), None)
    return Clip(
        None if own is None else str(own), None if is_sound else str(file), None if mouth is None else str(mouth), text, place
    )  # fmt: skip


def _beside(file: Path, endings: tuple[str, ...]) -> Path | None:
    return next((f for ending in endings if (f := file.with_suffix(ending)).is_file()), None)


def is_part(file: Path) -> bool:
    """Whether a file is no clip of its own: where a mouth is, or the sound of a video beside it."""
    sound = file.suffix.lower() in SOUND and _beside(file, VIDEO) is not None
    return sound or file.name.lower().endswith(MOUTH)
