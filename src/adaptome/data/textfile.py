"""Whole text files, gzip or not, with undecodable bytes named by line."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from adaptome.core.errors import DataError

#: byte-order marks and what they say; the longer ones first, as UTF-16's begins UTF-32's
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
    """The file as text, without a byte-order mark. Of UTF-16 and UTF-32 files the mark tells the encoding where none is given.

    Raises:
        DataError: names the line of the first byte that is not in `encoding`, or an encoding that does not exist; UTF-16 without mark.
    """
    content = read_bytes(path)
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = next((name for mark, name in MARKS if content.startswith(mark)), encoding)
        start = content[:1000]
        if encoding not in ("utf-16", "utf-32") and start.count(0) > len(start) / 4:
            order = "le" if start[1::2].count(0) > start[::2].count(0) else "be"
            raise DataError(
                f"{path}: every other byte is 0, so this looks like UTF-16 without a byte-order mark.\n"
                f"  Say so: data.encoding: utf-16-{order}."
            )
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
