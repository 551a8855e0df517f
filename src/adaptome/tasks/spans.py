"""Tags of words as entities, and entities of texts as tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

#: a word, or a mark that is none
WORD = re.compile(r"\w+|[^\w\s]")


def is_iob2(name: str) -> bool:
    """Whether this tag is of IOB2: O, or B- or I- and a type."""
    return name == "O" or name[:2] in ("B-", "I-")


def entities(tags: Sequence[str], strict: bool = False) -> list[dict[str, Any]]:
    """Entities of IOB2 tags in their order: {"type", "start", "end"} with word numbers, the end one past the last.

    Args:
        strict: an I- that goes on from nothing, or from another type, is no entity; otherwise it begins one, as conlleval reads it.
    """
    found: list[dict[str, Any]] = []
    kind = None
    for i, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and name == kind:
            found[-1]["end"] = i + 1
            continue
        kind = name if prefix == "B" or (prefix == "I" and not strict) else None
        if kind is not None:
            found.append({"type": name, "start": i, "end": i + 1})
    return found


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words and marks of a text begin and end, in characters."""
    return [match.span() for match in WORD.finditer(text)]


def tagged(text: str, spans: Sequence[tuple[int, int, str]]) -> tuple[list[str], list[str], int]:
    """A text with entities in characters as words with IOB2 tags.

    A word that begins inside an entity and ends beyond it is parted there. Of entities that share a word the longest stays, which is what
    a tag for every word can say.

    Args:
        spans: (begin, end, type) of every entity.

    Returns:
        the words, their tags, and how many entities were left out.
    """
    kept: list[tuple[int, int, str]] = []
    for begin, end, kind in sorted(spans, key=lambda s: (s[0] - s[1], s[0])):
        if begin < end <= len(text) and all(end <= b or e <= begin for b, e, _ in kept):
            kept.append((begin, end, kind))
    edges = sorted({edge for begin, end, _ in kept for edge in (begin, end)})
    words, tags, left = [], [], sorted(kept)
    for begin, end in words_of(text):
        inner = [begin, *(edge for edge in edges if begin < edge < end), end]
        for first, last in pairwise(inner):
            while left and left[0][1] <= first:
                left.pop(0)
            inside = bool(left) and left[0][0] <= first
            words.append(text[first:last])
            opens = inside and not text[left[0][0] : first].strip()
            tags.append(f"{'B' if opens else 'I'}-{left[0][2]}" if inside else "O")
    return words, tags, len(spans) - len(kept)


def from_bigbio(row: Mapping[str, Any]) -> list[tuple[list[str], list[str], int]]:
    """The passages of a document in BigBio's `kb` schema as (words, tags, entities left out): see `tagged`.

    Offsets count characters of the document, in which a passage begins at its own. An entity of several parts is left out:
    tags have no form for it.
    """
    made = []
    for passage in row["passages"]:
        text, (begin, _) = passage["text"][0], passage["offsets"][0]
        own = [e for e in row["entities"] if begin <= e["offsets"][0][0] < begin + len(text)]
        whole = [e for e in own if len(e["offsets"]) == 1]
        spans = [(e["offsets"][0][0] - begin, e["offsets"][0][1] - begin, e["type"]) for e in whole]
        words, tags, lost = tagged(text, spans)
        if words:
            made.append((words, tags, lost + len(own) - len(whole)))
    return made
