"""Frames of videos in the layout of deepfake benchmarks: `dataset/source/video/frame.png`.

    FF/real/000/0001.png            real: "real" is in the name of its source
    FF/DF/000_003/0001.png          fake; video 000 with the face of 003

A folder is read with everything below it, a text file as a list of such paths, one on a line: frames, or folders of frames,
relative to the list's own folder or to where the command runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of

Video = tuple[str, str, str]  # dataset, source, name


@reader("frames", ".frames", folders=True)
def read_frames(path: Path, options: ReadOptions) -> Table:
    """Columns image, label (real or fake), dataset, source and video, and whom a video shows.

    `pair` is the real video that a fake was made of, by its name, and the name itself for a real one; empty where there is none
    such. Videos that share a `group` are made of one another; no two splits should have videos of one.

    Raises:
        DataError: no frames, a path that is none, or one that is not as the layout says.
    """
    files = _below(path) if path.is_dir() else _listed(path, options.encoding)
    if not files:
        raise DataError(f"{path}: no frames. Endings read: {', '.join(sorted(IMAGES.endings))}.")
    if IMAGES.check is not None:
        for file in files:
            IMAGES.check(file)
    videos = [_video(file) for file in files]
    pairs, groups = related(videos)
    return Table(
        str(path),
        {
            "image": [str(file) for file in files],
            "label": ["real" if is_real(source) else "fake" for _, source, _ in videos],
            "dataset": [dataset for dataset, _, _ in videos],
            "source": [source for _, source, _ in videos],
            "video": ["/".join(video) for video in videos],
            "pair": [pairs[video] for video in videos],
            "group": [groups[video] for video in videos],
        },
        range(1, len(files) + 1),
        files={"image": "images"},
        places=[str(file) for file in files],
    )


def is_real(source: str) -> bool:
    """Whether the videos of a source are real, by its name."""
    return "real" in source.lower()


def related(videos: Iterable[Video]) -> tuple[dict[Video, str], dict[Video, str]]:
    """Pair and group of each video, as `dataset/name`.

    A fake's name is made of those of real ones: `000_003` (FaceForensics++) of 000, `id0_id1_0002` (Celeb-DF) of id0_0002.
    """
    known = dict.fromkeys(videos)
    real = {(dataset, name) for dataset, source, name in known if is_real(source)}
    pairs: dict[Video, str] = {}
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def first(one: tuple[str, str]) -> tuple[str, str]:
        while leader.get(one, one) != one:
            one = leader[one]
        return one

    for video in known:
        dataset, source, name = video
        target, donor = _made_of(name)
        found = name if is_real(source) else next((n for n in target if (dataset, n) in real), "")
        pairs[video] = f"{dataset}/{found}" if found else ""
        others = [n for n in (*target, *donor) if (dataset, n) in real]
        for other in [] if is_real(source) else others:
            a, b = sorted((first((dataset, name)), first((dataset, other))))
            leader[b] = a
    groups = {(d, s, n): "/".join(first((d, n))) for d, s, n in known}
    return pairs, groups


def _made_of(name: str) -> tuple[Sequence[str], Sequence[str]]:
    """Names that the real video of a fake may have, and that of the face's donor, the likeliest first."""
    parts = name.split("_")
    if len(parts) < 2:
        return [name], []
    kept, other, *rest = parts
    return ["_".join([kept, *rest]), kept, name], ["_".join([other, *rest]), other]


def _video(file: Path) -> Video:
    parts = file.absolute().parts
    if len(parts) < 5:
        raise DataError(f"{file}: expected dataset/source/video/frame.")
    return parts[-4], parts[-3], parts[-2]


def _below(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES.endings)


def _listed(path: Path, encoding: str) -> list[Path]:
    files: list[Path] = []
    for number, line in enumerate(lines_of(path, encoding), 1):
        if not line.strip():
            continue
        named = Path(line.strip())
        found = next((p for p in (path.parent / named, named) if p.exists()), None)
        if found is None:
            raise DataError(
                f"{path}, line {number}: no file or folder {line.strip()!r}, here or in {path.parent}."
            )
        files += _below(found) if found.is_dir() else [found]
    return files
