"""A worked answer: the marks around thought and solution, and the thought's steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from adaptome.core.errors import DataError
from adaptome.traces.keywords import opens_with_keyword, sentences

Style = Literal["sky", "think"]
BETWEEN = "\n\n"  # two steps


@dataclass(frozen=True)
class Markers:
    """What stands around a thought and the solution after it; a solution without marks is all that follows the thought."""

    begin_thought: str
    end_thought: str
    begin_solution: str = ""
    end_solution: str = ""


#: sky: SkyThought's and Bespoke-Stratos' rows; think: DeepSeek-R1's and its kin
MARKERS: dict[str, Markers] = {
    "sky": Markers(
        "<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"
    ),
    "think": Markers("<think>", "</think>"),
}


@dataclass(frozen=True)
class Trace:
    """A worked answer; `text` gives back what was read, to the letter.

    Attributes:
        head: up to the thought, its opening mark included. thought: as it is written. middle: up to the solution.
        solution, tail: the solution, and what closes it.
        own: the steps, where another than the rule of `segment` has said them.
    """

    head: str
    thought: str
    middle: str
    solution: str
    tail: str
    own: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """As a model learns it."""
        return self.head + self.thought + self.middle + self.solution + self.tail

    @property
    def steps(self) -> tuple[str, ...]:
        """The thought's steps, without the space between them."""
        return segment(self.thought) if self.own is None else self.own

    def with_steps(self, steps: Sequence[str]) -> Trace:
        """The trace with another thought; its solution stays, to the letter."""
        return replace(self, thought=BETWEEN.join(steps), own=tuple(steps))


def framed(steps: Sequence[str], solution: str, markers: Markers) -> Trace:
    """A trace of these parts, laid out as SkyThought's rows are: a blank line between marks and text; `<think>` takes a line's end."""
    gap = BETWEEN if markers.begin_solution else "\n"
    middle = gap + markers.end_thought + BETWEEN
    tail = ""
    if markers.begin_solution:
        middle, tail = middle + markers.begin_solution + BETWEEN, BETWEEN + markers.end_solution
    return Trace(markers.begin_thought + gap, BETWEEN.join(steps), middle, solution, tail, tuple(steps))


def read_trace(text: str, markers: Markers, steps: Sequence[str] | None = None) -> Trace:
    """The trace that a text is.

    Args:
        steps: the thought's own, as a language model may have found them; None for those of `segment`.

    Raises:
        DataError: a mark is missing, stands twice or in a wrong place, the thought or the solution is empty, or the steps are
            not the thought's.
    """
    wanted = [
        m for m in (markers.begin_thought, markers.end_thought, markers.begin_solution, markers.end_solution) if m
    ]  # fmt: skip
    places = []
    for mark in wanted:
        times = text.count(mark)
        if times != 1:
            raise DataError(f"no {mark}" if not times else f"{mark} stands {times} times")
        places.append(text.index(mark))
    if places != sorted(places):
        raise DataError(f"the marks stand in another order than {' '.join(wanted)}")
    ends = [place + len(mark) for place, mark in zip(places, wanted, strict=True)]
    thought = _bounds(text, ends[0], places[1])
    solution = (
        _bounds(text, ends[2], places[3]) if markers.begin_solution else _bounds(text, ends[1], len(text))
    )
    if thought[0] == thought[1]:
        raise DataError("the thought is empty")
    if solution[0] == solution[1]:
        raise DataError("the solution is empty")
    said = text[slice(*thought)]
    if steps is not None and _bare("".join(steps)) != _bare(said):
        raise DataError("the steps that are given are not the thought's")
    parts = (text[: thought[0]], said, text[thought[1] : solution[0]], text[slice(*solution)], text[solution[1] :])  # fmt: skip
    return Trace(*parts, None if steps is None else tuple(step.strip() for step in steps))


def segment(thought: str) -> tuple[str, ...]:
    """The steps of a thought, by rule: a blank line ends one, and a sentence that opens with a keyword begins one."""
    steps: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n\s*", thought.strip()):
        begun = ""
        for sentence in sentences(paragraph):
            if begun.strip() and opens_with_keyword(sentence):
                steps.append(begun.strip())
                begun = ""
            begun += sentence
        steps.append(begun.strip())
    return tuple(step for step in steps if step)


def _bounds(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the text between two places begins and ends, white space at its ends aside."""
    inside = text[start:end]
    begin = start + len(inside) - len(inside.lstrip())
    return begin, max(begin, start + len(inside.rstrip()))


def _bare(text: str) -> str:
    return "".join(text.split())
