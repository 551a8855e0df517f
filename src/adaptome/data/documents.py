"""Text files and folders of them as documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.textfile import read_text

#: endings of the files that a folder is searched for
ENDINGS = (".txt", ".text", ".txt.gz")


def read_documents(inputs: Sequence[str]) -> list[tuple[str | None, str]]:
    """Every input as (its file, its text): a file's, those of all text files below a folder by name, or (None, the input itself).

    Raises:
        DataError: a folder without text files, or a file that is no UTF-8 text.
    """
    made: list[tuple[str | None, str]] = []
    for given in inputs:
        path = Path(given)
        if len(given) < 1000 and "\n" not in given and path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.lower().endswith(ENDINGS))
            if not files:
                raise DataError(f"{path}: no text file in this folder ({', '.join(ENDINGS)}).")
            made += [(str(file), read_text(file)) for file in files]
        elif len(given) < 1000 and "\n" not in given and path.is_file():
            made.append((given, read_text(path)))
        else:
            made.append((None, given))
    return made
