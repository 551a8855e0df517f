"""Codes of n bits in bytes: planes of 8, 4, 2 and 1 bits, the first code in a byte's high bits.

n = 4    one plane of nibbles
n = 3    a plane of 2 bits, then a plane of 1 bit: 3 bits a code and no less
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: numbers of bits that codes can have
WIDTHS = range(1, 9)


def planes(bits: int) -> list[int]:
    """Widths of the planes that hold codes of so many bits, the high bits first: 3 -> [2, 1]."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return sum(-(-count * width // 8) for width in planes(bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes `[*, n]`, integers below `2**bits`, as bytes `[*, packed_bytes(n, bits)]`."""
    parts, shift = [], bits
    for width in planes(bits):
        shift -= width
        plane = (codes.to(torch.uint8) >> shift) & (2**width - 1)
        per = 8 // width
        plane = F.pad(plane, (0, -plane.shape[-1] % per)).unflatten(-1, (-1, per))
        byte = torch.zeros_like(plane[..., 0])
        for i in range(per):
            byte |= plane[..., i] << (8 - width * (i + 1))
        parts.append(byte)
    return torch.cat(parts, -1)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes `[*, count]`, uint8, of bytes that `pack` made."""
    codes: Tensor | None = None
    start = 0
    for width in planes(bits):
        size = -(-count * width // 8)
        plane = data[..., start : start + size]
        start += size
        if width < 8:
            cells = [(plane >> (8 - width * (i + 1))) & (2**width - 1) for i in range(8 // width)]
            plane = torch.stack(cells, -1).flatten(-2)[..., :count]
        codes = plane if codes is None else (codes << width) | plane
    assert codes is not None
    return codes
