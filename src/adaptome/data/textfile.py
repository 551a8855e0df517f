"""Whole text files, gzip or not, with undecodable bytes named by line."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from adaptome.core.errors import DataError


def read_bytes(path: Path) -> bytes:
    """The file's bytes, unpacked if its name ends in .gz.

    Raises:
        DataError: it cannot be opened, or the gzip data is damaged or cut short.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.suffix.lower() != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}). Copy it again, or drop .gz from a plain file's name."
        ) from error


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The file as text, without a byte-order mark.

    Raises:
        DataError: names the line of the first byte that is not in `encoding`, or an encoding that does not exist.
    """
    content = read_bytes(path)
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise DataError(
            f"data.encoding={encoding!r} is no encoding Python knows; e.g. utf-8, latin-1, utf-16."
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not {encoding}.\n"
            f"  If the file has another encoding, say so, e.g. data.encoding: latin-1."
        ) from error


def lines_of(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines without their ends; only line feeds part lines, since other breaks may stand inside a text."""
    text = read_text(path, encoding)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines
