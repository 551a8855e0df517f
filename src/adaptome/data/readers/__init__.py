"""Readers: one file per group of formats; each is found by its registration alone.

A reader turns one file (or, for image folders and .npz files, all splits at once) into a `Table`:

    @reader("jsonl", ".jsonl", ".ndjson")
    def read_jsonl(path: Path, options: ReadOptions) -> Table: ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Table


@dataclass(frozen=True)
class ReadOptions:
    """What the recipe says on reading: see `DataSection` of the recipe."""

    encoding: str = "utf-8"
    delimiter: str | None = None
    tags: str = "convert"
    #: what is read, for files that hold several splits
    split: str = "train"


Reader = Callable[[Path, ReadOptions], Table]
_READERS: dict[str, Reader] = {}
_ENDINGS: dict[str, str] = {}
_OF_FOLDERS: set[str] = set()


def reader(name: str, *endings: str, folders: bool = False) -> Callable[[Reader], Reader]:
    """Register a reader of single files under `name`, used for files with these endings (also with .gz).

    Args:
        folders: it reads a folder too, as one split.
    """

    def put(read: Reader) -> Reader:
        _READERS[name] = read
        _OF_FOLDERS.update({name} if folders else ())
        _ENDINGS.update(dict.fromkeys(endings, name))
        return read

    return put


def find_reader(name: str) -> Reader:
    """The reader registered as `name`.

    Raises:
        DataError: there is none.
    """
    _load_all()
    if name not in _READERS:
        raise DataError(
            f"No reader for format {name!r}.{did_you_mean(name, _READERS)} There are: {', '.join(sorted(_READERS))}."
        )
    return _READERS[name]


def readers_of_folders() -> set[str]:
    """Names of the readers that read a folder as one split."""
    _load_all()
    return set(_OF_FOLDERS)


def endings() -> dict[str, str]:
    """File ending -> format, longest first."""
    _load_all()
    return dict(sorted(_ENDINGS.items(), key=lambda item: -len(item[0])))


def format_of(path: Path) -> str | None:
    """The format that a file's ending stands for, .gz aside; None when it stands for none."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for ending, kind in endings().items() if name.endswith(ending)), None)


def _load_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
