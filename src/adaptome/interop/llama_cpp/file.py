"""Reading a GGUF file within limits: header, entries, tensors of plain floating point. Every length is held to the file's before it is used.

The format (version 3): magic, version, counts of tensors and entries; entries as key, type, value; tensors as name, dimensions (the last
first), type, offset; then, aligned, the data. The gguf package's reader trusts the lengths in the file.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptome.core.errors import FormatError, TornFileError

#: more entries, tensors or elements of an array than any adapter has
MOST = 200_000
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: GGML's types that an adapter is stored in
_TYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}


class _Bytes:
    """A file's bytes with a place in them."""

    def __init__(self, data: memoryview, source: str):
        self.data, self.at, self.source = data, 0, source

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.at:
            raise TornFileError(
                f"{self.source} ends at {len(self.data):,} bytes, within what it says it holds."
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def count(self, what: str) -> int:
        value = int(self.number("Q"))
        if value > MOST:
            raise FormatError(
                f"{self.source} has {value:,} {what}; a file of more than {MOST:,} is not read."
            )
        return value

    def text(self) -> str:
        try:
            return bytes(self.take(int(self.number("Q")))).decode("utf-8")
        except UnicodeDecodeError as error:
            raise TornFileError(f"{self.source} holds text that is not UTF-8 ({error}).") from error

    def value(self, kind: int, deep: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and not deep:
            inner, count = int(self.number("I")), self.count("elements in an array")
            return [self.value(inner, deep=True) for _ in range(count)]
        raise FormatError(f"{self.source} holds an entry of the unknown type {kind}.")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The entries, and the tensors by name with the shapes that torch gives them.

    Raises:
        TornFileError: bytes are missing.
        FormatError: not GGUF, of another version, too large, or of quantised tensors.
    """
    if not path.is_file():
        raise FormatError(f"{path} is not there.")
    data = _Bytes(memoryview(path.read_bytes()), str(path))
    if bytes(data.take(4)) != b"GGUF":
        raise FormatError(f"{path} is not a GGUF file.")
    version = data.number("I")
    if version not in (2, 3):
        raise FormatError(f"{path} is GGUF of version {version}; versions 2 and 3 are read.")
    tensors, entries = data.count("tensors"), data.count("entries")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = data.text()
        metadata[key] = data.value(int(data.number("I")))
    infos = [_info(data) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**16:
        raise FormatError(f"{path}: general.alignment is {alignment!r}.")
    start = data.at + -data.at % alignment
    found: dict[str, Tensor] = {}
    for name, shape, dtype, offset in infos:
        data.at = min(start + offset, len(data.data))
        size = math.prod(shape) * dtype.itemsize
        raw = data.take(size)
        if name in found:
            raise FormatError(f"{path} holds {name} twice.")
        found[name] = torch.frombuffer(bytearray(raw), dtype=dtype).view(shape) if size else torch.empty(0)
    return metadata, found


def _info(data: _Bytes) -> tuple[str, tuple[int, ...], torch.dtype, int]:
    name, dimensions = data.text(), int(data.number("I"))
    if not 1 <= dimensions <= 4:
        raise FormatError(f"{data.source}: {name} has {dimensions} dimensions.")
    shape = tuple(int(data.number("Q")) for _ in range(dimensions))[::-1]
    kind, offset = int(data.number("I")), int(data.number("Q"))
    if kind not in _TYPES:
        raise FormatError(
            f"{data.source}: {name} is stored in GGML's type {kind}; float32, float16 and bfloat16 are read."
        )
    return name, shape, _TYPES[kind], offset
