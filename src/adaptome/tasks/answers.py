"""Answers in generated text: how each data set's are read out and compared, as Hu et al. 2023 (arXiv:2304.01933) do."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from adaptome.core.errors import DataError


class Rule(ABC):
    """How an answer is read out of a text, and when it is right. As text, it is what it reads."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """The answer in a generated text; what stands for "none" equals no label."""

    def label(self, answer: str) -> Any:
        """A record's own answer, in the form of `read`; None when it is not one."""
        return self.read(answer) or None

    def right(self, text: str, answer: str) -> bool:
        """Whether the text's answer is the record's."""
        return bool(self.read(text) == self.label(answer))

    def unread(self, text: str) -> bool:
        """Whether a generated text holds no answer."""
        return self.label(text) is None

    def also(self, text: str, answer: str) -> dict[str, bool]:
        """Verdicts of other readings, reported beside this one."""
        return {}


@dataclass(frozen=True)
class Number(Rule):
    """The last number, commas deleted; right within a tolerance. A text without one gives infinity, which is wrong.

    As in the source, `10-3` ends in -3: a minus sign belongs to the digits after it.
    """

    tolerance: float = 1e-3

    def __str__(self) -> str:
        return "a number"

    def read(self, text: str) -> float:
        found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
        return float(found[-1]) if found else math.inf

    def label(self, answer: str) -> float | None:
        value = self.read(answer)
        return value if math.isfinite(value) else None

    def right(self, text: str, answer: str) -> bool:
        label = self.label(answer)
        return label is not None and abs(self.read(text) - label) <= self.tolerance


_TEX = r"\\boxed\{|\\text\{|\\\("
_GAP = rf"""(?:{_TEX}|[\s:*(\[{{$"'‘“])*"""  # what may stand between a phrase and its letter
_PHRASE = re.compile(
    rf"(?i:\b(?:ans(?:wer)?|(?:correct|right)\s+(?:option|choice))\b{_GAP}"
    rf"(?:(?:is|will\s+be|would\s+be|must\s+be|=|-|–)(?!\w){_GAP})?(?:(?:the\s+)?(?:option|choice)\b{_GAP})?)"
    r"([A-E])(?![\w'’])"
)
_ALONE = re.compile(rf"(?i:option|choice)?(?:{_TEX}|\W)*([A-E])\W*")
_CALLED_RIGHT = re.compile(r"(?<![\w'’])([A-E])\W{0,3}\s(?i:is\s+(?:the\s+)?(?:correct|right|answer))\b")


@dataclass(frozen=True)
class Letter(Rule):
    """The letter A to E that a text calls its answer; '' when it calls none so.

    First the last of "answer is (X)", "Answer: X", "correct option X" and their like, then a last line that is a letter
    alone or "option X", then the last "X is correct". The source takes the first capital A to E anywhere, so that
    "All", "Based" and "Each" are answers. Its verdict is reported as well, under `first_letter`.
    """

    def __str__(self) -> str:
        return "a letter from A to E"

    def read(self, text: str) -> str:
        lines = [line for line in text.splitlines() if line.strip()]
        alone = _ALONE.fullmatch(lines[-1]) if lines else None
        called = _PHRASE.findall(text) or ([alone[1]] if alone else _CALLED_RIGHT.findall(text))
        return called[-1] if called else ""

    def also(self, text: str, answer: str) -> dict[str, bool]:
        first = re.search("[A-E]", text)
        return {"first_letter": first is not None and first[0] == self.label(answer)}


@dataclass(frozen=True)
class Choice(Rule):
    """The first of the choices that stands in the text; '' when none does.

    Args:
        whole: only where it is a word of its own, so that "I know" holds no "no", and in whatever case, unless choices
            differ by case alone. The source looks for its sets' choices as they are written, within words too.
    """

    choices: tuple[str, ...]
    whole: bool = False

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"

    def read(self, text: str) -> str:
        longest_first = sorted(self.choices, key=len, reverse=True)  # 'answer10' before 'answer1'
        pattern = "|".join(
            f"({_word(choice) if self.whole else re.escape(choice)})" for choice in longest_first
        )
        distinct = len({choice.casefold() for choice in self.choices}) == len(self.choices)
        found = re.search(pattern, text, re.IGNORECASE if self.whole and distinct else 0)
        return longest_first[found.lastindex - 1] if found and found.lastindex else ""


def _word(choice: str) -> str:
    """A pattern of the choice without letters or digits of its script's kind beside it."""
    before = r"(?<![A-Za-z0-9_])" if re.match("[A-Za-z0-9_]", choice) else ""
    after = r"(?![A-Za-z0-9_])" if re.search("[A-Za-z0-9_]$", choice) else ""
    return f"{before}{re.escape(choice)}{after}"


@dataclass(frozen=True)
class Text(Rule):
    """The whole text, up to spaces and case."""

    def __str__(self) -> str:
        return "the whole text"

    def read(self, text: str) -> str:
        return " ".join(text.split()).casefold()


def _numbered(stem: str, count: int) -> Choice:
    return Choice(tuple(f"{stem}{number}" for number in range(1, count + 1)))


#: the arithmetic sets, then the commonsense sets, with the source's own choices
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("gsm8k", "svamp", "mawps", "multiarith", "addsub", "singleeq"), Number()),
    "aqua": Letter(),
    "boolq": Choice(("true", "false")),
    "piqa": _numbered("solution", 2),
    **dict.fromkeys(("siqa", "arc_e", "arc_c", "obqa"), _numbered("answer", 5)),
    "hellaswag": _numbered("ending", 4),
    "winogrande": _numbered("option", 2),
}
_ALIASES = {
    "socialiqa": "siqa", "arceasy": "arc_e", "arce": "arc_e", "arcchallenge": "arc_c", "arcc": "arc_c",
    "openbookqa": "obqa", "aquarat": "aqua",
}  # fmt: skip
_SPLITS = r"(?:train|training|validation|valid|val|dev|test)"
#: training sets that hold the questions of these test sets: the authors' own notice
HOLDS = dict.fromkeys(("mawps", "math_10k"), ("addsub", "multiarith", "singleeq"))


def set_name(source: str) -> str:
    """The data set that a file, folder or hub id is named after: 'dataset/AddSub/test.json' -> 'addsub'."""
    *above, last = PurePosixPath(source.replace("\\", "/")).parts or ("",)
    name = last.split(".")[0]
    if re.fullmatch(_SPLITS, name, re.IGNORECASE) and above:
        name = above[-1]
    name = re.sub(rf"[\W_]+{_SPLITS}$", "", name, flags=re.IGNORECASE)
    squashed = re.sub(r"[\W_]", "", name).casefold()
    return _ALIASES.get(squashed, squashed if squashed in RULES else re.sub(r"\W+", "_", name).casefold())


def rule_for(name: str, answers: Iterable[str]) -> Rule:
    """The rule of a known set; for another, what its answers call for: numbers, letters, few choices, or whole texts."""
    if name in RULES:
        return RULES[name]
    seen = {answer.strip() for answer in answers}
    if all(re.fullmatch(r"[-$]?[\d,]+\.?\d*%?", answer) for answer in seen):
        return Number()
    if all(re.fullmatch("[A-E]", answer) for answer in seen):
        return Letter()
    return Choice(tuple(sorted(seen)), whole=True) if len(seen) <= 20 else Text()


def rules_of(
    sets: Sequence[str], answers: Sequence[str], where: Callable[[int], str], rule: Rule | None = None
) -> dict[str, Rule]:
    """The rule of every set.

    Args:
        sets: of every row.
        answers: of every row.
        where: names a row's place in its file.
        rule: for all sets; None for each its own.

    Raises:
        DataError: an answer that its rule cannot read, or no answer; names the line.
    """
    rules = {
        name: rule or rule_for(name, [a for a, own in zip(answers, sets, strict=True) if own == name])
        for name in sets
    }
    for row, (name, answer) in enumerate(zip(sets, answers, strict=True)):
        if rules[name].label(answer) is None:
            known = "" if name in RULES else " Say how answers are read: task.read."
            raise DataError(
                f"{where(row)}: no {type(rules[name]).__name__.lower()} can be read from the answer {answer!r}, "
                f"as the set {name!r} needs.{known}"
            )
    return rules


def guessed(rules: Mapping[str, Rule]) -> list[str]:
    """Notes on the sets that are not known, whose answers say how they are read."""
    return [
        f"the set {name!r} is not known, so its answers are read as they look: {rule}. task.read says otherwise."
        for name, rule in rules.items()
        if name not in RULES
    ]


def contaminated(train: Iterable[str], test: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs (training set, test set whose questions it holds) that are known; `mawps_asdiv` is taken for one with MAWPS."""
    wanted = set(test)
    return [
        (one, held)
        for one in sorted(set(train))
        for held in dict.fromkeys(held for key in HOLDS if f"_{key}_" in f"_{one}_" for held in HOLDS[key])
        if held in wanted
    ]


def overlap(train: Sequence[str], test: Sequence[str]) -> int:
    """How many of the test texts stand in train, letter case, spaces and punctuation aside."""
    seen = {_bare(text) for text in train}
    return sum(_bare(text) in seen for text in test)


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().casefold()
