"""The nearest known sequence: candidates by common k-mers, then the identity of a global alignment."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

#: scores of the alignment; a gap of n residues costs n
MATCH, MISMATCH, GAP = 2, -1, -2


def identity(first: str, second: str) -> float:
    """Identical residues of the best global alignment over its length, gaps included; 0 for an empty sequence.

    Of alignments that score the same, one is taken: a residue against a residue first, then a gap in `second`.
    """
    if not first or not second:
        return 0.0
    a, b = (np.frombuffer(s.encode("ascii", "replace"), np.uint8) for s in (first, second))
    steps = GAP * np.arange(len(b) + 1)
    table = np.empty((len(a) + 1, len(b) + 1), np.int64)
    table[0] = steps
    for i, letter in enumerate(a, 1):
        best = np.empty(len(b) + 1, np.int64)
        best[0] = GAP * i
        best[1:] = np.maximum(
            table[i - 1, :-1] + np.where(b == letter, MATCH, MISMATCH), table[i - 1, 1:] + GAP
        )
        table[i] = np.maximum.accumulate(best - steps) + steps  # gaps along the row, all at once
    i, j, same, length = len(a), len(b), 0, 0
    while i or j:
        match = i and j and a[i - 1] == b[j - 1]
        if i and j and table[i, j] == table[i - 1, j - 1] + (MATCH if match else MISMATCH):
            same, i, j = same + bool(match), i - 1, j - 1
        elif i and table[i, j] == table[i - 1, j] + GAP:
            i -= 1
        else:
            j -= 1
        length += 1
    return same / length


class Nearest:
    """An index of known sequences.

    Args:
        sequences: the known ones.
        k: letters of a k-mer; a sequence that shares none with any known one is no nearer than 0.
        candidates: of which the alignment is computed, those with most k-mers in common.
    """

    def __init__(self, sequences: Sequence[str], k: int = 3, candidates: int = 10):
        self.sequences, self.k, self.candidates = list(dict.fromkeys(sequences)), k, candidates
        self._whole = set(self.sequences)
        self._with: dict[str, list[int]] = defaultdict(list)
        for number, sequence in enumerate(self.sequences):
            for part in self._parts(sequence):
                self._with[part].append(number)

    def _parts(self, sequence: str) -> set[str]:
        return {sequence[i : i + self.k] for i in range(len(sequence) - self.k + 1)}

    def __call__(self, sequence: str) -> tuple[float, str | None]:
        """Identity to the nearest known sequence, and that sequence; 0 and None where none shares a k-mer."""
        if sequence in self._whole:
            return 1.0, sequence
        common = Counter(number for part in self._parts(sequence) for number in self._with.get(part, ()))
        found = [
            (identity(sequence, self.sequences[n]), self.sequences[n])
            for n, _ in common.most_common(self.candidates)
        ]
        return max(found, default=(0.0, None), key=lambda one: one[0])
