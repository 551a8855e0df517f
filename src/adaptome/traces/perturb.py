"""Traces spoiled in one way by a known share: what does a model learn of them, their content or their structure?

Li et al. 2025, arXiv:2502.07374, section 5. Edits of content:

    digits    a share of all digits, each replaced by a digit drawn from all ten
    keywords  a share of the thought's sentences that hold a keyword (`keywords`), taken out
    wrong     the answer, replaced by another

and of structure, where the solution stays to the letter:

    delete    a share of the steps, taken out
    insert    a share of the steps, replaced by steps of other traces
    shuffle   a share of the steps, in each other's places

Of n things a share f is round(f n) of them, drawn without replacement; with one seed a smaller share's are among a larger one's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from adaptome.core.errors import DataError
from adaptome.traces.keywords import has_keyword, sentences
from adaptome.traces.trace import Trace

How = Literal["wrong", "digits", "keywords", "shuffle", "delete", "insert"]
#: kind -> the paper's shares
HOW: dict[str, tuple[float, ...]] = {
    "wrong": (1.0,),
    "digits": (0.2, 0.5, 0.7, 1.0),
    "keywords": (0.2, 0.5, 1.0),
    "shuffle": (0.33, 0.67, 1.0),
    "delete": (0.33, 0.67, 1.0),
    "insert": (0.33, 0.67, 1.0),
}
STRUCTURAL = ("shuffle", "delete", "insert")
_NUMBER = re.compile(r"\d+")


def rates() -> list[tuple[str, float]]:
    """Every kind with every share of the paper's, in its order."""
    return [(how, share) for how, shares in HOW.items() for share in shares]


def perturbed(trace: Trace, how: str, share: float, draw: random.Random, others: Sequence[str] = ()) -> Trace:
    """The trace, spoiled.

    Args:
        trace: a whole one.
        how: a kind of `HOW`.
        share: from 0, which leaves it as it is, to 1.
        draw: what chance is taken from; nothing else is.
        others: steps of other traces, for `insert`; answers of others, for `wrong`.

    Raises:
        DataError: `insert` without steps of others, or `wrong` where there is no number to change.
    """
    if share == 0:
        return trace
    if how == "digits":
        return _digits(trace, share, draw)
    if how == "keywords":
        return _keywords(trace, share, draw)
    if how == "wrong":
        return _wrong(trace, share, draw)
    steps = list(trace.steps)
    chosen = _chosen(len(steps), share, draw)
    if how == "delete":
        return trace.with_steps([step for at, step in enumerate(steps) if at not in set(chosen)])
    if how == "insert":
        if not others:
            raise DataError("insert takes steps of other traces, and there are none.")
        for at in sorted(chosen):
            steps[at] = draw.choice(others)
        return trace.with_steps(steps)
    if how != "shuffle":
        raise DataError(f"there is no perturbation {how!r}. There are: {', '.join(HOW)}.")
    to = list(chosen)
    while len(to) > 1 and to == chosen:
        draw.shuffle(to)
    moved = list(steps)
    for at, place in zip(chosen, to, strict=True):
        moved[place] = steps[at]
    return trace.with_steps(moved)


def _chosen(count: int, share: float, draw: random.Random) -> list[int]:
    """Places of a share of so many things."""
    order = list(range(count))
    draw.shuffle(order)
    return order[: round(share * count)]


def _digits(trace: Trace, share: float, draw: random.Random) -> Trace:
    """Thought and solution as one text: of the whole trace's digits, a share."""
    whole = trace.thought + trace.solution
    places = [at for at, letter in enumerate(whole) if letter in "0123456789"]
    letters = list(whole)
    for at in _chosen(len(places), share, draw):
        letters[places[at]] = draw.choice("0123456789")
    made, cut = "".join(letters), len(trace.thought)
    return replace(trace, thought=made[:cut], solution=made[cut:], own=None)


def _keywords(trace: Trace, share: float, draw: random.Random) -> Trace:
    parts = sentences(trace.thought)
    there = [at for at, part in enumerate(parts) if has_keyword(part)]
    gone = {there[at] for at in _chosen(len(there), share, draw)}
    kept = "".join(part for at, part in enumerate(parts) if at not in gone)
    return replace(trace, thought=kept.strip(), own=None)


def _wrong(trace: Trace, share: float, draw: random.Random) -> Trace:
    """In a share of the traces, the last number of the solution, and of the thought where it ends in the same, by another of its length."""
    if draw.random() >= share:
        return trace
    found = _NUMBER.findall(trace.solution)
    if not found:
        raise DataError(
            f"the solution {trace.solution[-60:]!r} has no number that a wrong answer could be made of."
        )
    right = found[-1]
    low = 0 if len(right) == 1 else 10 ** (len(right) - 1)
    other = str(draw.choice([n for n in range(low, min(10 ** len(right), low + 1000)) if str(n) != right]))
    in_thought = _NUMBER.findall(trace.thought)
    thought = (
        _last_replaced(trace.thought, other) if in_thought and in_thought[-1] == right else trace.thought
    )
    return replace(trace, thought=thought, solution=_last_replaced(trace.solution, other), own=None)


def _last_replaced(text: str, other: str) -> str:
    last = list(_NUMBER.finditer(text))[-1]
    return text[: last.start()] + other + text[last.end() :]
