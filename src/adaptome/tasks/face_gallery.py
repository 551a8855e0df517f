"""A gallery of faces kept on disk: a direction for each picture of a folder, made once for each model, searched exactly.

    people/anna/1.jpg     a picture of anna        people/anna.jpg     the same, without folders of people

The file is a safetensors one, `features` [n, D] of length 1, with names, sizes and times of the pictures as its metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptome.core.errors import DataError
from adaptome.core.files import write_atomic
from adaptome.data.readers.images import ENDINGS
from adaptome.tasks.base import Gallery

logger = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class Index:
    """Directions of pictures [n, D], their paths, and whose they are; how many were made now."""

    features: np.ndarray
    files: list[str]
    people: list[str]
    made: int

    def search(self, probe: np.ndarray, top: int) -> list[tuple[str, str, float]]:
        """The likest `top` people: name, likest picture, likeness. `probe` [D] is of length 1."""
        likeness = self.features @ probe
        best: dict[str, tuple[str, str, float]] = {}
        for number in np.argsort(-likeness, kind="stable"):
            if self.people[number] not in best:
                best[self.people[number]] = (self.people[number], self.files[number], float(likeness[number]))
            if len(best) == top:
                break
        return list(best.values())


def indexed(gallery: Gallery, embed: Callable[[Sequence[str]], tuple[np.ndarray, list[int]]]) -> Index:
    """The gallery's index: as it is kept, with what is new or changed embedded and what is gone left out.

    Args:
        embed: paths -> directions [m, D] of those that could be read, and their places among the paths.

    Raises:
        DataError: no such folder, or no picture in it that can be read.
    """
    if not gallery.folder.is_dir():
        raise DataError(
            f"--gallery {gallery.folder}: no such folder; expected one of pictures, {gallery.folder.name}/<person>/<picture> or <person>.png."
        )
    files = sorted(f for f in gallery.folder.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())
    if not files:
        raise DataError(
            f"--gallery {gallery.folder}: no pictures. Endings read: {', '.join(sorted(ENDINGS))}."
        )
    place = (
        gallery.kept
        / f"{hashlib.sha256(str(gallery.folder.resolve()).encode()).hexdigest()[:16]}.safetensors"
    )
    known = _kept(place, gallery.stamp)
    keys = {str(f.relative_to(gallery.folder)): _state(f) for f in files}
    wanted = [name for name, state in keys.items() if name not in known or known[name][0] != state]
    fresh: dict[str, np.ndarray] = {}
    if wanted:
        features, read = embed([str(gallery.folder / name) for name in wanted])
        fresh = {wanted[number]: row for number, row in zip(read, features, strict=True)}
    rows = {
        name: fresh[name] if name in fresh else known[name][1]
        for name in keys
        if name in fresh or name not in wanted
    }
    if not rows:
        raise DataError(
            f"--gallery {gallery.folder}: none of its {len(files)} pictures can be read as a face."
        )
    stacked = np.stack(list(rows.values())).astype(np.float32)
    if wanted or len(rows) != len(known):
        _keep(place, stacked, {name: keys[name] for name in rows}, gallery.stamp)
    people = [_person(Path(name)) for name in rows]
    return Index(stacked, [str(gallery.folder / name) for name in rows], people, len(fresh))


def _person(name: Path) -> str:
    return name.parts[0] if len(name.parts) > 1 else name.stem


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _kept(place: Path, stamp: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """Name -> state and direction; nothing where another model made them, or the file is no such index."""
    from safetensors import SafetensorError, safe_open

    if not place.is_file():
        return {}
    try:
        with safe_open(place, framework="np") as opened:
            told = json.loads((opened.metadata() or {}).get("gallery", "{}"))
            if told.get("format") != FORMAT or told.get("stamp") != stamp:
                return {}
            features = opened.get_tensor("features")
    except (OSError, ValueError, SafetensorError) as error:
        logger.warning("%s is no whole index (%s); the gallery is embedded anew.", place, error)
        return {}
    return {name: (state, row) for (name, state), row in zip(told["files"].items(), features, strict=True)}


def _keep(place: Path, features: np.ndarray, files: dict[str, list[int]], stamp: str) -> None:
    from safetensors.numpy import save

    place.parent.mkdir(parents=True, exist_ok=True)
    told = json.dumps({"format": FORMAT, "stamp": stamp, "files": files})
    write_atomic(place, save({"features": np.ascontiguousarray(features)}, {"gallery": told}))
