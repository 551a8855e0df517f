r"""Answers that are mathematics: the last \boxed{} of a text, equal to the record's as numbers, fractions, sets or formulas are.

math-verify reads and compares them (`pip install 'adaptome[math]'`). Without it the boxed numbers are compared, or the boxed texts
where they are no numbers, which a run's notes tell.
"""

from __future__ import annotations

import importlib.util
import math
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from adaptome.tasks.answers import Number, Rule

NOT_THERE = (
    "math-verify is not installed, so answers are compared as numbers, fractions or texts, and not as mathematics: \\{1, 2\\} and "
    "\\{2, 1\\} differ. pip install 'adaptome[math]' compares them in full."
)
#: letters of an answer that is taken as it is
LINE = 120
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{?(\d+)\}?\{?(\d+)\}?|(-?\d+)/(\d+)")


@lru_cache(maxsize=1)
def verifier() -> bool:
    """Whether math-verify is installed."""
    return importlib.util.find_spec("math_verify") is not None


def without_a_verifier() -> list[str]:
    """The note on what is done without math-verify; none where it is there."""
    return [] if verifier() else [NOT_THERE]


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{} of a text, braces matched; None where there is none, or it is not closed."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    at = begun = text.index("{", start) + 1
    depth = 1
    while at < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return None if depth else text[begun : at - 1].strip()


@dataclass(frozen=True)
class Math(Rule):
    r"""The last \boxed{} of a text, else its last expression; right where it is equal to the record's as mathematics."""

    def __str__(self) -> str:
        return "mathematics"

    def read(self, text: str) -> Any:
        inside = boxed(text)
        if inside is not None:
            return inside
        found = Number().read(text)
        return "" if math.isinf(found) else f"{found:.12g}"

    def unread(self, text: str) -> bool:
        return not self.read(text)

    def label(self, answer: str) -> str | None:
        """A record's answer: what is boxed in it, what stands behind GSM8K's ####, a line as it is, or the last number of a longer text."""
        plain = answer.rpartition("####")[2].strip()
        line = plain if "\n" not in plain and len(plain) <= LINE else None
        return boxed(answer) or line or self.read(answer) or None

    def right(self, text: str, answer: str) -> bool:
        given, wanted = self.read(text), self.label(answer)
        if not given or wanted is None:
            return False
        return _verified(given, wanted) if verifier() else _alike(given, wanted)


def _verified(given: str, wanted: str) -> bool:
    from math_verify import parse, verify

    if _plain(given) == _plain(wanted):
        return True
    # its limit on time is a signal, which only the main thread can take
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    parsed = [parse(rf"\boxed{{{text}}}", parsing_timeout=limit) for text in (wanted, given)]
    return bool(all(parsed) and verify(*parsed, timeout_seconds=limit))


def _alike(given: str, wanted: str) -> bool:
    a, b = _number(given), _number(wanted)
    return a == b if a is not None and b is not None else _plain(given) == _plain(wanted)


def _number(text: str) -> Fraction | None:
    """The number that a text is; None where it is another thing."""
    plain = _plain(text)
    found = _FRACTION.fullmatch(plain)
    if found:
        top, bottom = (int(found[2]), int(found[3])) if found[2] else (int(found[4]), int(found[5]))
        return Fraction(-top if found[1] else top, bottom) if bottom else None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def _plain(text: str) -> str:
    """Without spaces, signs of money and percent, TeX's words for layout, units in \\text{} and commas between thousands."""
    bare = re.sub(r"\\text\s*\{[^}]*\}|\\(?:left|right|,|!|;|\$|%)|[\s$%°]|\.$", "", text)
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", bare).replace("dfrac", "frac").replace("tfrac", "frac")
