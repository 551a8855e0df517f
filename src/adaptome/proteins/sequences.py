"""Measures of a set of sequences that need nothing but the sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptome.proteins.alphabet import AMINO_ACIDS

#: SEG's window and the entropy below which it is of low complexity (Wootton and Federhen 1993)
WINDOW, BITS = 12, 2.2


def composition(sequences: Sequence[str]) -> np.ndarray:
    """Shares [20] of the amino acids in all sequences together."""
    joined = "".join(sequences)
    counts = np.array([joined.count(letter) for letter in AMINO_ACIDS], float)
    return counts / max(counts.sum(), 1)


def divergence(first: Sequence[str], second: Sequence[str]) -> float:
    """Jensen-Shannon divergence of two sets' compositions, in bits: 0 alike, 1 without a common residue; 1 where one set is empty."""
    p, q = composition(first), composition(second)
    if not p.any() or not q.any():
        return 1.0
    m = (p + q) / 2

    def part(x: np.ndarray) -> float:
        there = x > 0
        return float((x[there] * np.log2(x[there] / m[there])).sum())

    return (part(p) + part(q)) / 2


def low_complexity(sequence: str, window: int = WINDOW, bits: float = BITS) -> float:
    """Share of the residues that lie in a window whose letters have less entropy than `bits`; 0 for a shorter sequence.

    SEG's first step; its refinement of the segments' ends is left out.
    """
    marked = np.zeros(len(sequence), bool)
    for start in range(len(sequence) - window + 1):
        part = sequence[start : start + window]
        shares = np.array([part.count(letter) for letter in set(part)]) / window
        if -(shares * np.log2(shares)).sum() < bits:
            marked[start : start + window] = True
    return float(marked.mean()) if len(sequence) else 0.0
