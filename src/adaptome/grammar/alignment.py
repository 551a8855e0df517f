"""The cheapest ways to turn one sentence into another: matches, substitutions, insertions, deletions and moved blocks.

A match costs 0, an insertion or a deletion 1, a block of k + 1 tokens in another order k, and a substitution what `costs` says. As in ERRANT
(Bryant et al. 2017) and ChERRANT (Zhang et al. 2022, arXiv:2204.10994), whose character level this is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from adaptome.grammar.costs import Substitution

#: sentences whose lengths differ by more have their first alignment alone, as in ChERRANT
FAR = 10
#: alignments looked at; ties multiply, and a sentence that was written anew has millions
MOST = 4096


class Step(NamedTuple):
    """Source tokens [a, b) become target tokens [c, d). kind: M match, S substitution, I insertion, D deletion, T another order."""

    kind: str
    a: int
    b: int
    c: int
    d: int


def alignments(
    source: Sequence[str], target: Sequence[str], cost: Substitution | None = None, first: bool = False
) -> list[list[Step]]:
    """All alignments of the least cost, in the order in which ChERRANT finds them; `MOST` of them at most.

    Args:
        source, target: tokens.
        cost: of a substitution; default: `Substitution()`.
        first: only the first, as for lengths that differ by more than `FAR`.
    """
    choices = _choices(source, target, cost or Substitution())
    only = first or abs(len(source) - len(target)) > FAR
    return list(islice(_paths(choices, len(source), len(target)), 1 if only else MOST))


def _choices(
    source: Sequence[str], target: Sequence[str], cost: Substitution
) -> list[list[list[tuple[str, int]]]]:
    """For every pair of beginnings, the cheapest last steps: a kind and its tokens."""
    rows, columns = len(source) + 1, len(target) + 1
    total = [[0.0] * columns for _ in range(rows)]
    steps: list[list[list[tuple[str, int]]]] = [[[] for _ in range(columns)] for _ in range(rows)]
    for i in range(1, rows):
        total[i][0], steps[i][0] = float(i), [("D", 1)]
    for j in range(1, columns):
        total[0][j], steps[0][j] = float(j), [("I", 1)]
    for i in range(1, rows):
        for j in range(1, columns):
            if source[i - 1] == target[j - 1]:
                total[i][j], steps[i][j] = total[i - 1][j - 1], [("M", 1)]
                continue
            block = _block(source, target, total, i, j)
            several = [
                (total[i - block][j - block] + block - 1 if block else float("inf"), ("T", block)),
                (total[i - 1][j - 1] + cost(source[i - 1], target[j - 1]), ("S", 1)),
                (total[i][j - 1] + 1, ("I", 1)),
                (total[i - 1][j] + 1, ("D", 1)),
            ]
            least = min(price for price, _ in several)
            total[i][j] = least
            steps[i][j] = [step for price, step in several if price == least]
    return steps


def _block(
    source: Sequence[str], target: Sequence[str], total: Sequence[Sequence[float]], i: int, j: int
) -> int:
    """Tokens of the shortest block that ends here and holds the same tokens in another order; 0: there is none.

    The search ends where a step back along the diagonal cost nothing: a match.
    """
    length = 2
    while (
        length <= i and length <= j and total[i - length + 1][j - length + 1] != total[i - length][j - length]
    ):
        if sorted(source[i - length : i]) == sorted(target[j - length : j]):
            return length
        length += 1
    return 0


def _paths(choices: Sequence[Sequence[Sequence[tuple[str, int]]]], i: int, j: int) -> Iterator[list[Step]]:
    """The ways back from the ends, depth first."""
    waiting: list[tuple[int, int, Any]] = [(i, j, None)]  # with what follows, as linked pairs
    while waiting:
        i, j, after = waiting.pop()
        if not i and not j:
            yield _unrolled(after)
            continue
        for kind, length in reversed(choices[i][j]):
            a = i if kind == "I" else i - length
            c = j if kind == "D" else j - length
            waiting.append((a, c, (Step(kind, a, i, c, j), after)))


def _unrolled(linked: Any) -> list[Step]:
    made = []
    while linked is not None:
        step, linked = linked
        made.append(step)
    return made
