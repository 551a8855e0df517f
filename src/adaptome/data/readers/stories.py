"""Stories: frames with captions, the first of which is the source that the others go on from.

    stories.json   [{"frames": ["a/0.png", "a/1.png"], "captions": ["...", ...]}, ...]    a caption a frame; or one fewer, none of the source
    train.json     {"id": {"desc_to_frame": [["...", "a/0.png"], ...]}, ...}              DiDeMoSV's
    a folder with flintstones_annotations_v1-0.json, train-val-test_split.json and video_frames_sampled/<id>.npy       FlintstonesSV's

Paths are beside the file. A picture that is a multiple of its width high is a strip of one clip (PororoSV), whose middle is taken. PororoSV's own
index files are pickles, which are not read: write a stories.json of them once.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import read_text

FLINTSTONES, SPLITS, CLIPS = (
    "flintstones_annotations_v1-0.json",
    "train-val-test_split.json",
    "video_frames_sampled",
)
#: frames of a story of FlintstonesSV, the source among them
LENGTH = 5


@reader("stories", ".stories.json", folders=True)
def read_stories(path: Path, options: ReadOptions) -> Table:
    """Columns frames (paths) and captions, one caption for each frame after the first.

    Raises:
        DataError: no such file, a story without frames or with other captions than frames, or a frame that is not there.
    """
    if path.is_dir():
        return _flintstones(path, options)
    try:
        content = json.loads(read_text(path, options.encoding))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    items = list(content.items()) if isinstance(content, dict) else list(enumerate(content, 1))
    columns: dict[str, list[Any]] = {"frames": [], "captions": []}
    for name, item in items:
        frames, captions = _told(item)
        where = f"{path}, story {name}"
        if len(frames) < 2:
            raise DataError(
                f"{where}: {len(frames)} frames. A story has a source and at least one frame more."
            )
        if len(captions) == len(frames):
            captions = captions[1:]
        if len(captions) != len(frames) - 1:
            raise DataError(f"{where}: {len(captions)} captions for {len(frames)} frames; give one for each, or one for each after the first.")  # fmt: skip
        for frame in frames:
            if not (path.parent / frame).is_file():
                raise DataError(f"{where}: no frame {frame!r} in {path.parent}.")
            if Path(frame).suffix != ".npy" and IMAGES.check is not None:
                IMAGES.check(path.parent / frame)
        columns["frames"].append([str(path.parent / frame) for frame in frames])
        columns["captions"].append([str(caption) for caption in captions])
    if not columns["frames"]:
        raise DataError(f"{path}: no stories.")
    return Table(str(path), columns, range(1, len(items) + 1), unit="story")


def _told(item: Any) -> tuple[list[str], list[str]]:
    """Frames and captions of one entry, as it tells them."""
    if isinstance(item, dict) and "desc_to_frame" in item:
        pairs = item["desc_to_frame"]
        return [str(frame) for _, frame in pairs], [str(caption) for caption, _ in pairs]
    if isinstance(item, dict):
        return [str(f) for f in item.get("frames", [])], [str(c) for c in item.get("captions", [])]
    return [], []


def _flintstones(folder: Path, options: ReadOptions) -> Table:
    """Successive clips of an episode, LENGTH at a time; those of the options' split where the split file has it, else all."""
    missing = [name for name in (FLINTSTONES, CLIPS) if not (folder / name).exists()]
    if missing:
        raise DataError(
            f"{folder}: no {missing[0]}. A folder of stories is FlintstonesSV's; others are a stories.json."
        )
    told = {
        str(one["globalID"]): str(one["description"]) for one in json.loads(read_text(folder / FLINTSTONES))
    }
    split = json.loads(read_text(folder / SPLITS)) if (folder / SPLITS).is_file() else {}
    part = {"validation": "val"}.get(options.split, options.split)
    if split and part not in split:
        raise DataError(f"{folder / SPLITS} has no clips of {part!r}. It has: {', '.join(split)}.")
    columns: dict[str, list[Any]] = {"frames": [], "captions": []}
    known = sorted(name for name in split.get(part, told) if name in told)
    skipped = 0
    for _, group in groupby(known, key=lambda name: name.split("_shot_")[0]):
        clips = list(group)
        for first in range(len(clips) - LENGTH + 1):
            window = clips[first : first + LENGTH]
            files = [folder / CLIPS / f"{name}.npy" for name in window]
            if not all(file.is_file() for file in files):
                skipped += 1
                continue
            columns["frames"].append([str(file) for file in files])
            columns["captions"].append([told[name] for name in window[1:]])
    if not columns["frames"]:
        raise DataError(
            f"{folder}: no {LENGTH} clips of an episode that follow each other, with files in {CLIPS}."
        )
    notes = [f"{folder}: {skipped} stories left out, whose clips are not all there."] if skipped else []
    return Table(str(folder), columns, range(1, len(columns["frames"]) + 1), unit="story", notes=notes)
