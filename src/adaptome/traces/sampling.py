"""Several answers to one question: the chance that one of k is right."""

from __future__ import annotations

import math

from adaptome.core.errors import DataError


def pass_at_k(drawn: int, right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): of n answers of which c are right, the share of all choices of k that hold a right one.

    Chen et al. 2021, arXiv:2107.03374: an estimate without bias of the chance that k new answers hold one.

    Raises:
        DataError: not 0 <= right <= drawn, or not 1 <= k <= drawn.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= right <= drawn and 1 <= k <= drawn):
        raise DataError(f"pass@{k} of {right} right among {drawn} answers is not defined.")
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)
