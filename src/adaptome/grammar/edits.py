"""The edits between a sentence and its correction, as ChERRANT tells them at character level.

Steps between two matches are one edit: deletions alone, or insertions alone, are one; a deletion beside an insertion stays two; with a
substitution among them they are one substitution. What stands on two sides of a match and changes places is one edit of order. Zhang et al.
2022, arXiv:2204.10994, and the tool of the same name.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from adaptome.grammar.alignment import Step, alignments
from adaptome.grammar.costs import Substitution

#: whether runs of Latin letters and digits are one token each
Latin = Literal["characters", "words"]
#: one token, whatever the granularity: a part of the sentence that nobody can guess
MISSING = "[缺失成分]"
#: marks that do not change places
_FIXED = (
    string.punctuation
    + "！？｡＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟–—‘'‛“”„‟…‧."
)
_KINDS = {"T": "W", "D": "R", "I": "M", "S": "S"}


@dataclass(frozen=True, order=True)
class Edit:
    """Tokens [start, end) of the source become `text`.

    kind: M something was missing, R redundant, S is another, W stands elsewhere.
    """

    start: int
    end: int
    text: str
    kind: Literal["M", "R", "S", "W"]


def tokens(text: str, latin: Latin = "characters") -> list[str]:
    """A text without its spaces as characters; `latin='words'` keeps runs of Latin letters and digits whole."""
    pattern = f"{re.escape(MISSING)}|[A-Za-z0-9]+|." if latin == "words" else f"{re.escape(MISSING)}|."
    return re.findall(pattern, "".join(text.split()), re.DOTALL)


def edits(
    source: Sequence[str], target: Sequence[str], cost: Substitution | None = None, first: bool = False
) -> list[list[Edit]]:
    """The edits of every cheapest alignment, those that come out the same once.

    Args:
        source, target: tokens.
        cost, first: as for `alignments`.
    """
    if list(source) == list(target):
        return [[]]
    found = {
        tuple(_trimmed(_moved(_grouped(steps), source, target), source, target)): None
        for steps in alignments(source, target, cost, first)
    }
    return [[_edit(step, target) for step in steps] for steps in found]


def _edit(step: Step, target: Sequence[str]) -> Edit:
    return Edit(step.a, step.b, "".join(target[step.c : step.d]), _KINDS[step.kind])  # type: ignore[arg-type]


def _joined(kind: str, steps: Sequence[Step]) -> Step:
    first, last = steps[0], steps[-1]
    return Step(kind, first.a, last.b, first.c, last.d)


def _grouped(steps: Sequence[Step]) -> list[Step]:
    """Neighbours made one: matches, and what stands between matches and moved blocks."""
    made = []
    for fixed, group in groupby(steps, lambda step: step.kind if step.kind in "MT" else ""):
        several = list(group)
        kinds = {step.kind for step in several}
        if fixed == "T" or kinds == {"D", "I"}:
            made += several
        else:
            made.append(_joined(kinds.pop() if len(kinds) == 1 else "S", several))
    return made


def _moved(steps: Sequence[Step], source: Sequence[str], target: Sequence[str]) -> Iterator[Step]:
    """The steps that change something; three in which two parts change places are one of order."""
    at = 0
    while at < len(steps):
        three = steps[at : at + 3]
        if len(three) == 3 and _is_move(three, source, target):
            yield _joined("T", three)
            at += 3
            continue
        if steps[at].kind != "M":
            yield steps[at]
        at += 1


def _is_move(steps: Sequence[Step], source: Sequence[str], target: Sequence[str]) -> bool:
    first, middle, last = steps

    def before(step: Step) -> str:
        return "".join(source[step.a : step.b])

    def after(step: Step) -> str:
        return "".join(target[step.c : step.d])

    if [step.kind for step in steps] == ["S", "M", "S"]:
        pairs = ((before(first), after(last)), (after(first), before(last)))
        if min(len(text) for pair in pairs for text in pair) == 1:
            return all(one == other for one, other in pairs)
        return all(_near(one, other) for one, other in pairs)
    if {first.kind, last.kind} == {"D", "I"} and middle.kind in "MT":
        left, right = (before(first), after(last)) if first.kind == "D" else (before(last), after(first))
        short, long = sorted((left, right), key=len)
        if short in _FIXED or long in _FIXED or len(long) - len(short) > 1:
            return False
        if len(short) == 1:
            return short == long
        return _near(short, long) or (len(short) == len(long) and long in short * 2)
    return False


def _near(one: str, other: str) -> bool:
    """Whether one edit of one character, or none, makes one of the other."""
    short, long = sorted((one, other), key=len)
    at = next((i for i, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    if len(short) == len(long):
        return short[at + 1 :] == long[at + 1 :]
    return len(long) == len(short) + 1 and short[at:] == long[at + 1 :]


def _trimmed(steps: Iterator[Step], source: Sequence[str], target: Sequence[str]) -> Iterator[Step]:
    """Without edits that change nothing, and substitutions without the ends that they have in common."""
    for kind, a, b, c, d in steps:
        old, new = list(source[a:b]), list(target[c:d])
        if old == new:
            continue
        if kind == "S":
            front = _common(old, new)
            # as the tool: the common end is looked for in the whole new text, and cut off where the rest has room for it
            back = _common(old[front:][::-1], new[::-1])
            back = back if back <= len(new) - front else 0
            a, b, c, d = a + front, b - back, c + front, d - back
            kind = "I" if a == b else "D" if c == d else "S"
        yield Step(kind, a, b, c, d)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the common beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(one), len(other)))
