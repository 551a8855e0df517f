"""Words by which a thought turns on itself: reflection, doubt, another way, a check.

Li et al. 2025 (arXiv:2502.07374) let a language model find such sentences; this list is a rule, so that counts can be repeated.
"""

from __future__ import annotations

import re

_AGAIN = r"(?:think|check|verify|re-?check|re-?consider|re-?think|re-?examine|double[- ]check|see|try|go back|start over)"
KEYWORDS = re.compile(
    r"\b(?:(?:wait|alternatively|however|but|actually|hmm+|hold on|on second thought)\b|no,|another (?:way|approach|idea)|"
    rf"let(?:'|’)?s? (?:me |us )?{_AGAIN}(?: (?:this|that|it))?(?: again)?|to (?:verify|double[- ]check|be sure)|check(?=:|ing\b)|mistake)",
    re.IGNORECASE,
)
_END = re.compile(r"(?<=[.!?])[ \t]+|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space behind it: joined, they are the text."""
    made, start = [], 0
    for end in _END.finditer(text):
        made.append(text[start : end.end()])
        start = end.end()
    return [*made, text[start:]] if start < len(text) else made


def has_keyword(sentence: str) -> bool:
    """Whether a sentence holds a keyword."""
    return KEYWORDS.search(sentence) is not None


def count(text: str) -> int:
    """How many keywords a text holds."""
    return sum(1 for _ in KEYWORDS.finditer(text))


def opens_with_keyword(text: str) -> bool:
    """Whether a text's first words are a keyword."""
    return KEYWORDS.match(text.lstrip()) is not None
