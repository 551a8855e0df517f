"""A square core `L + U` of growing size, kept as two strips of numbers.

The core grows in blocks that end at ranks `s_1 < s_2 < ...`: block k owns its rows of L up to its own end, and U has the transposed
places; with blocks of 1, L and U are a lower and an upper triangle. A strip `[*, numbers]` holds them block after block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def count(ends: Sequence[int]) -> int:
    """Numbers in a strip of blocks that end at these ranks."""
    return sum((last - first) * last for first, last in zip([0, *ends], ends, strict=False))


def places(ends: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column, and whether it is in a diagonal block, of each of L's numbers."""
    found, first = [], 0
    for last in ends:
        found += [(i, j, j >= first) for i in range(first, last) for j in range(last)]
        first = last
    rows, columns, diagonal = torch.tensor(found, device="cpu").t()
    return rows, columns, diagonal.bool()


def assembled(L: Tensor, U: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """L + U, `[*, S, S]`, of strips, with `place` = row S + column of their numbers, where `mask [S]` is 1."""
    S, mask = len(mask), mask.to(L.dtype)
    flat = L.new_zeros(*L.shape[:-1], S * S)
    lower = flat.index_add(-1, place, L).unflatten(-1, (S, S))
    upper = flat.index_add(-1, place, U).unflatten(-1, (S, S)).mT
    return (lower + upper) * (mask[:, None] * mask)


def grow(
    L: Tensor,
    U: Tensor,
    place: Tensor,
    S: int,
    old: int,
    new: int,
    kept: float,
    drawn: Callable[[Tensor], Tensor],
) -> None:
    """Start the numbers of ranks old to new, and multiply those before by `kept`, in place.

    Between factors `B (L + U) A` whose new columns of B are 0, nothing changes but by `kept`: where an old column of B would meet a new
    row of A, the core starts at 0. U's numbers stand at transposed places.

    Args:
        drawn: gives fresh numbers of a strip's shape.
    """
    rows, columns = place // S, place % S
    before = (rows < old) & (columns < old)
    fresh = ~before & (rows < new) & (columns < new)
    for strip, after_B in ((L, rows), (U, columns)):
        strip.mul_(1 + before.to(strip) * (kept - 1))
        start = torch.where(after_B >= old, drawn(strip), 0.0)
        strip.copy_(torch.where(fresh, start.to(strip), strip))
