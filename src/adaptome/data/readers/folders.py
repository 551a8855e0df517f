"""Class folders: one subfolder of images or sounds per class, with or without a folder per split above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.splits import Table
from adaptome.data.textfile import read_text

_SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class FolderKind:
    """What a class folder holds.

    Attributes:
        format: its name in a recipe's `data.format`.
        column: of the files' paths.
        what: the files in the plural, for messages.
        endings: of the files.
        check: reads a file's header and raises DataError if it is no such file; None leaves that to the task.
        listed: files at the top that name those of a split, one path on a line; folders that begin with `_` are then
            no classes. Empty: no such files are looked for.
    """

    format: str
    column: str
    what: str
    endings: frozenset[str]
    check: Callable[[Path], None] | None = None
    listed: tuple[tuple[str, str], ...] = ()


def holds(folder: Path, kind: FolderKind) -> bool:
    """True when a file of this kind stands one or two folders down."""
    return any(f.suffix.lower() in kind.endings for depth in ("*/*", "*/*/*") for f in folder.glob(depth))


def read_class_folders(folder: Path, kind: FolderKind) -> dict[str, Table]:
    """The splits of a class folder: columns `kind.column` (path) and `label` (the class folder's name).

    Raises:
        DataError: no class folders, a class without files, or a file that is not of the kind.
    """
    below = _folders(folder)
    if below and all(d.name.lower() in _SPLITS for d in below):
        return {_SPLITS[d.name.lower()]: _table(d, kind, _classes(d, kind)) for d in below}
    lists = {split: folder / name for split, name in kind.listed if (folder / name).is_file()}
    if not lists:
        return {"train": _table(folder, kind, _classes(folder, kind))}
    rows = _classes(folder, kind, but="_")
    split_of = {path: split for split, file in lists.items() for path in read_text(file).splitlines()}
    made: dict[str, list[tuple[str, str]]] = {}
    for path, label in rows:
        name = Path(path).relative_to(folder).as_posix()
        made.setdefault(split_of.get(name, "train"), []).append((path, label))
    return {split: _table(folder, kind, found) for split, found in made.items()}


def _folders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))


def _classes(folder: Path, kind: FolderKind, but: str = "\0") -> list[tuple[str, str]]:
    """Path and label of every file; folders whose names begin with `but` are passed over."""
    rows: list[tuple[str, str]] = []
    kinds = [d for d in _folders(folder) if not d.name.startswith(but)]
    if not kinds:
        raise DataError(f"{folder}: no class folders; expected one subfolder of {kind.what} per class.")
    for each in kinds:
        found = sorted(f for f in each.rglob("*") if f.suffix.lower() in kind.endings)
        if not found:
            raise DataError(f"{each}: no {kind.what}. Endings read: {', '.join(sorted(kind.endings))}.")
        if kind.check is not None:
            for file in found:
                kind.check(file)
        rows += [(str(f), each.name) for f in found]
    return rows


def _table(folder: Path, kind: FolderKind, rows: list[tuple[str, str]]) -> Table:
    paths = [path for path, _ in rows]
    return Table(
        str(folder),
        {kind.column: paths, "label": [label for _, label in rows]},
        range(1, len(rows) + 1),
        files={kind.column: kind.what},
        places=paths,
    )
