"""M2 files: a sentence with what its annotators change, in ChERRANT's layout.

    S 他 去 学 校 了
    T0-A0 他 来 学 校 了                                  one line for each alternative; `T0 没有错误` where nothing is changed
    A 1 2|||S|||来|||REQUIRED|||-NONE-|||0              tokens 1 to 2 become 来; -NONE- for nothing; the last field is the annotator

The alternatives of one annotator have the annotator's number each, and so unite where the file is read (`Ties` pooled).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.core.files import write_atomic
from adaptome.grammar.edits import Edit
from adaptome.grammar.scores import (
    CHERRANT,
    HOPELESS,
    RIGHT,
    Annotation,
    Annotator,
    Counts,
    simplified,
    total,
)

NOTHING = "-NONE-"


@dataclass
class Block:
    """A sentence of a file. annotators: number -> edits, counted; empty Counter: nothing is changed; None: cannot be annotated."""

    source: tuple[str, ...]
    line: int
    annotators: dict[int, Annotation | None] = field(default_factory=dict)


def block(source: str, texts: Sequence[str], by: Annotator = CHERRANT) -> str:
    """The lines of a sentence and its corrections, an annotator each, without the empty line after it."""
    before = by.tokens(source)
    lines = ["S " + " ".join(before)]
    for number, text in enumerate(map(simplified, texts)):
        after = by.tokens(text)
        if text == HOPELESS:
            lines += [f"T{number} {HOPELESS}", _line(-1, -1, "NA", NOTHING, number)]
        elif text == RIGHT or after == before:
            lines += [f"T{number} {RIGHT}", _line(-1, -1, "noop", NOTHING, number)]
        else:
            for alternative, several in enumerate(by.alternatives(before, after)):
                lines.append(f"T{number}-A{alternative} " + " ".join(after))
                lines += [_of(edit, number, by) for edit in several]
    return "\n".join(lines)


def _of(edit: Edit, number: int, by: Annotator) -> str:
    text = NOTHING if edit.kind == "R" else " ".join(by.tokens(edit.text))
    return _line(edit.start, edit.end, edit.kind, text, number)


def _line(start: int, end: int, kind: str, text: str, annotator: int) -> str:
    return f"A {start} {end}|||{kind}|||{text}|||REQUIRED|||-NONE-|||{annotator}"


def write_m2(path: Path, blocks: Sequence[str]) -> None:
    """Write blocks, whole or not at all."""
    write_atomic(path, "".join(f"{one}\n\n" for one in blocks))


def read_m2(path: Path) -> list[Block]:
    """The sentences of a file, of ChERRANT or of M2 for English.

    Raises:
        DataError: it cannot be read, or a line is torn; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as M2: {error}") from error
    found: list[Block] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("S ") or line == "S":
            found.append(Block(tuple(line[2:].split()), number))
        elif line.startswith("A "):
            if not found:
                raise DataError(
                    f"{path}, line {number}: an edit before any sentence (a line that begins with S)."
                )
            _take(found[-1], line, f"{path}, line {number}")
        elif line.strip() and line[0] != "T":
            raise DataError(
                f"{path}, line {number}: expected a line that begins with S, T or A, found {line[:60]!r}."
            )
    if not found:
        raise DataError(f"{path}: no sentence; an M2 file has lines that begin with S.")
    return found


def _take(one: Block, line: str, place: str) -> None:
    fields = line[2:].split("|||")
    try:
        start, end = map(int, fields[0].split())
        annotator = int(fields[5])
    except (ValueError, IndexError):
        raise DataError(
            f"{place}: expected A start end|||kind|||text|||REQUIRED|||-NONE-|||annotator, found {line[:80]!r}. Is the file whole?"
        ) from None
    if fields[1] == "NA":
        one.annotators[annotator] = None
        return
    edits_of = one.annotators.setdefault(annotator, Annotation())
    if fields[1] == "noop" or edits_of is None:
        return
    if not 0 <= start <= end <= len(one.source):
        raise DataError(f"{place}: tokens {start} to {end} of a sentence of {len(one.source)}.")
    edits_of[start, end, fields[2].replace(" ", "")] += 1


def scored(hypotheses: Path, references: Path) -> Counts:
    """The counts of a file of corrections against one of references.

    Raises:
        DataError: a file cannot be read, or they are not of the same sentences; names the line.
    """
    return total((_annotations(one), _annotations(other)) for one, other in _together(hypotheses, references))


def _annotations(one: Block) -> list[Annotation]:
    """Of those who could annotate it; where no edit stands at all, nothing is changed."""
    return [found for found in (one.annotators or {0: Annotation()}).values() if found is not None]


def _together(hypotheses: Path, references: Path) -> Iterator[tuple[Block, Block]]:
    told, right = read_m2(hypotheses), read_m2(references)
    if len(told) != len(right):
        raise DataError(
            f"{hypotheses} has {len(told)} sentences, {references} {len(right)}: they go together one by one."
        )
    for one, other in zip(told, right, strict=True):
        if len(one.source) != len(other.source):
            raise DataError(
                f"{hypotheses}, line {one.line} and {references}, line {other.line} are not of one sentence: {len(one.source)} tokens, "
                f"{len(other.source)} tokens."
            )
        yield one, other
