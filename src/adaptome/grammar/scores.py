r"""Precision, recall and F0.5 of corrections by their edits, as ChERRANT counts them.

    P = TP / (TP + FP), R = TP / (TP + FN), F = (1 + b^2) P R / (b^2 P + R);    P = 1 without FP, R = 1 without FN

Of several references a sentence takes the one that makes the F of all sentences so far the highest, rounded to four digits; then the
one with more TP, fewer FP, fewer FN. So the order of the sentences counts. Zhang et al. 2022, arXiv:2204.10994.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adaptome.core.errors import DataError
from adaptome.grammar.costs import Substitution
from adaptome.grammar.edits import Edit, Latin, edits, tokens

#: what is done where several alignments cost the same: their edits united, so that an edit counts once for each that has
#: it, as the tool does; the first alone; or the one that scores best
Ties = Literal["pooled", "first", "best"]
#: references that say that there is nothing to correct, and that nobody can
RIGHT, HOPELESS = "没有错误", "无法标注"


#: one annotator's edits of a sentence, and how often each is counted
Annotation = Counter[tuple[int, int, str]]


@dataclass(frozen=True)
class Counts:
    """Edits that are right (tp), that no reference has (fp) and that are missing (fn)."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        return self.tp / (self.tp + self.fp) if self.fp else 1.0

    @property
    def recall(self) -> float:
        return self.tp / (self.tp + self.fn) if self.fn else 1.0

    def f(self, beta: float = 0.5) -> float:
        p, r = self.precision, self.recall
        return (1 + beta**2) * p * r / (beta**2 * p + r) if p + r else 0.0

    def to_dict(self) -> dict[str, float]:
        """Counts and scores, f0.5 among them."""
        return {
            "tp": self.tp, "fp": self.fp, "fn": self.fn,
            "precision": self.precision, "recall": self.recall, "f0.5": self.f(),
        }  # fmt: skip


def simplified(text: str) -> str:
    """A text in simplified characters, where the package opencc is installed; else as it is."""
    try:
        from opencc import OpenCC
    except ImportError:
        return text
    global _CONVERTER
    _CONVERTER = _CONVERTER or OpenCC("t2s")
    return str(_CONVERTER.convert(text))


_CONVERTER: Any = None


@dataclass(frozen=True)
class Annotator:
    """What tells a correction as edits.

    Args:
        ties: see `Ties`.
        cost: of a substitution; default: `Substitution()`.
        latin: see `edits.tokens`.
    """

    ties: Ties = "pooled"
    cost: Substitution | None = None
    latin: Latin = "characters"

    def tokens(self, text: str) -> list[str]:
        """A text without its spaces, cut up."""
        return tokens(text, self.latin)

    def alternatives(self, source: Sequence[str], target: Sequence[str]) -> list[list[Edit]]:
        """The edits of the cheapest alignments of two lists of tokens: of all, or of the first."""
        return edits(source, target, self.cost, first=self.ties == "first")

    def annotate(self, source: str, texts: Sequence[str]) -> list[Annotation]:
        """What several corrections of a sentence change; with `ties='best'` one for each alternative, `HOPELESS` left out."""
        before, made = self.tokens(source), list[Annotation]()
        for text in texts:
            if text == HOPELESS:
                continue
            several = self.alternatives(before, before if text == RIGHT else self.tokens(text))
            made += [counted([one]) for one in several] if self.ties == "best" else [counted(several)]
        return made


#: as the tool does with its defaults
CHERRANT = Annotator()


def counted(several: Sequence[Sequence[Edit]]) -> Annotation:
    """The united edits of alternatives."""
    return Counter((e.start, e.end, e.text) for one in several for e in one)


def compared(told: Annotation, right: Annotation) -> Counts:
    """Counts of one annotation against one reference."""
    return Counts(
        sum(right[edit] for edit in told if edit in right),
        sum(n for edit, n in told.items() if edit not in right),
        sum(n for edit, n in right.items() if edit not in told),
    )


def chosen(
    hypotheses: Sequence[Annotation], references: Sequence[Annotation], before: Counts, beta: float = 0.5
) -> Counts:
    """A sentence's counts with the reference (and the hypothesis) that does best together with the sentences before.

    Without a reference, because nobody could annotate the sentence, it does not count.
    """
    pairs = [compared(one, other) for one in hypotheses for other in references]
    # max takes the first of equals, as the tool does
    return max(pairs, default=Counts(), key=lambda c: (round((c + before).f(beta), 4), c.tp, -c.fp, -c.fn))


#: a sentence's annotations: of the correction, and of its references
Pair = tuple[list[Annotation], list[Annotation]]


def annotated(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    by: Annotator = CHERRANT,
) -> list[Pair]:
    """Each sentence's annotations; the arguments are those of `corpus`.

    Raises:
        DataError: lists of different lengths, or a sentence without a reference.
    """
    if not len(sources) == len(hypotheses) == len(references):
        raise DataError(
            f"{len(sources)} sentences, {len(hypotheses)} corrections and {len(references)} lists of references: they go together line by line."
        )
    made = []
    for number, (source, hypothesis, several) in enumerate(
        zip(sources, hypotheses, references, strict=True), 1
    ):
        if not several:
            raise DataError(f"sentence {number} has no reference: {source!r}.")
        told = by.annotate(source, [simplified(hypothesis)])
        made.append((told, by.annotate(source, [simplified(text) for text in several])))
    return made


def total(pairs: Iterable[Pair]) -> Counts:
    """The counts of sentences in their order."""
    found = Counts()
    for told, right in pairs:
        found += chosen(told, right, found)
    return found


def corpus(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    by: Annotator = CHERRANT,
) -> Counts:
    """The counts of a corpus.

    Args:
        sources, hypotheses: sentences and their corrections.
        references: the corrections of each by one annotator or several; put into simplified characters, as hypotheses are.

    Raises:
        DataError: as `annotated`.
    """
    return total(annotated(sources, hypotheses, references, by))
