"""Data sets of knowledge extraction, one row a relation or a mention, as their authors hand them out.

    fewrel      JSON: relation -> [{"tokens", "h": [name, id, [places, ...]], "t": ...}]           FewRel
    tacred      JSON: [{"token", "subj_start", "subj_end", "obj_start", "obj_end", "relation"}]    TACRED; ends inclusive
                or lines: number TAB candidates TAB sentence with <H> </H> <T> </T>                as continual learning has it
    fewnerd     a word TAB its type in a line, an empty line after a sentence                      FewNERD
    mentions    lines: first TAB end TAB words TAB label                                           OntoNotes, BBN; end exclusive
                or JSON lines: {"tokens", "mentions": [{"start", "end", "labels"}]}, of the labels the finest
    ace         JSON lines: {"sentences", "relations"}, places counted through the document        ACE 2005; ends inclusive

Columns: `tokens` (words), `label`, and `head` and `tail`, or `mention`: every place [first, end) of the entity among the words, end exclusive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of, read_text

#: what stands for no relation in TACRED: left out, as in continual learning, whose tasks are the relations
NONE = "no_relation"


class _Rows:
    """Columns that grow, checked."""

    def __init__(self, path: Path, names: Sequence[str], unit: str = "line"):
        self.path, self.unit, self.lines = path, unit, list[int]()
        self.columns: dict[str, list[Any]] = {name: [] for name in ("tokens", *names, "label")}

    def add(self, number: int, tokens: Sequence[str], label: Any, **places: Sequence[Sequence[int]]) -> None:
        for name, spans in places.items():
            for first, end in spans:
                if not 0 <= first < end <= len(tokens):
                    raise DataError(
                        f"{self.path}, {self.unit} {number}: {name} is at words {first} to {end}, and the sentence has {len(tokens)}."
                    )
        for name, value in {"tokens": list(tokens), "label": str(label), **places}.items():
            self.columns[name].append(value if isinstance(value, str) else list(value))
        self.lines.append(number)

    def table(self, notes: Sequence[str] = ()) -> Table:
        if not self.lines:
            raise DataError(f"{self.path} holds no {' and '.join(list(self.columns)[1:-1])}.")
        return Table(str(self.path), self.columns, self.lines, self.unit, notes=list(notes))


def _wrong(path: Path, where: str, error: Exception, form: str) -> DataError:
    return DataError(f"{path}, {where}: {type(error).__name__} {error}; expected {form}.")


def _json(path: Path, options: ReadOptions) -> Any:
    try:
        return json.loads(read_text(path, options.encoding))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}.") from error


def _filled(path: Path, options: ReadOptions) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


@reader("fewrel")
def read_fewrel(path: Path, options: ReadOptions) -> Table:
    """One row for each example of each relation."""
    content, made, number = _json(path, options), _Rows(path, ("head", "tail"), "example"), 0
    form = '{"P17": [{"tokens": [...], "h": ["name", "Q1", [[0, 1]]], "t": [...]}]}'
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected {form}.")
    for relation, examples in content.items():
        for one in examples:
            number += 1
            try:
                spans = {
                    name: [[min(at), max(at) + 1] for at in one[key][2]]
                    for name, key in (("head", "h"), ("tail", "t"))
                }
                made.add(number, one["tokens"], relation, **spans)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise _wrong(path, f"example {number} ({relation})", error, form) from error
    return made.table()


@reader("tacred")
def read_tacred(path: Path, options: ReadOptions) -> Table:
    """One row for each example that has a relation."""
    if not read_text(path, options.encoding).lstrip().startswith("["):
        return _tacred_lines(path, options)
    made, left_out = _Rows(path, ("head", "tail"), "example"), 0
    form = '{"token": [...], "subj_start": 0, "subj_end": 1, "obj_start": 4, "obj_end": 4, "relation": "per:title"}'
    for number, one in enumerate(_json(path, options), 1):
        try:
            if one["relation"] == NONE:
                left_out += 1
                continue
            spans = {
                name: [[one[f"{key}_start"], one[f"{key}_end"] + 1]]
                for name, key in (("head", "subj"), ("tail", "obj"))
            }
            made.add(number, one["token"], one["relation"], **spans)
        except (KeyError, TypeError) as error:
            raise _wrong(path, f"example {number}", error, form) from error
    return made.table([f"{path}: {left_out} examples of {NONE} are left out."] if left_out else [])


def _tacred_lines(path: Path, options: ReadOptions) -> Table:
    made = _Rows(path, ("head", "tail"))
    form = "number, candidates and the sentence with <H> </H> <T> </T>, tabs between them"
    for number, line in _filled(path, options):
        try:
            label, _, sentence = line.split("\t")
            tokens, spans = marked_words(sentence, {"H": "head", "T": "tail"})
            made.add(number, tokens, label, **{name: spans[name] for name in ("head", "tail")})
        except (KeyError, ValueError) as error:
            raise _wrong(path, f"line {number}", error, form) from error
    return made.table()


def marked_words(sentence: str, names: dict[str, str]) -> tuple[list[str], dict[str, list[list[int]]]]:
    """Words of a sentence, and where what stands between <X> and </X> is among them, by the names of the marks.

    Raises:
        ValueError: a mark that does not open or close.
    """
    marks = "|".join(names)
    words: list[str] = []
    spans: dict[str, list[list[int]]] = {}
    opened: dict[str, int] = {}
    for word in re.sub(rf"(</?(?:{marks})>)", r" \1 ", sentence).split():
        mark = re.fullmatch(rf"<(/?)({marks})>", word)
        if mark is None:
            words.append(word)
        elif not mark[1]:
            opened[mark[2]] = len(words)
        elif mark[2] in opened:
            spans.setdefault(names[mark[2]], []).append([opened.pop(mark[2]), len(words)])
        else:
            raise ValueError(f"</{mark[2]}> closes nothing")
    if opened:
        raise ValueError(f"<{next(iter(opened))}> is not closed")
    return words, spans


@reader("fewnerd")
def read_fewnerd(path: Path, options: ReadOptions) -> Table:
    """One row for each mention: neighbouring words of one type."""
    made, words, types, first = _Rows(path, ("mention",)), list[str](), list[str](), 1
    for number, line in enumerate([*lines_of(path, options.encoding), ""], 1):
        if line.strip():
            fields = line.rstrip("\r\n").split(options.delimiter or "\t")
            if len(fields) != 2:
                raise DataError(
                    f"{path}, line {number}: expected a word and its type with a tab between them, found {line.strip()!r}."
                )
            first = first if words else number
            words.append(fields[0])
            types.append(fields[1].strip())
            continue
        at = 0
        while at < len(types):
            end = next((i for i in range(at, len(types)) if types[i] != types[at]), len(types))
            if types[at] != "O":
                made.add(first + at, words, types[at], mention=[[at, end]])
            at = end
        words, types = [], []
    return made.table()


@reader("mentions")
def read_mentions(path: Path, options: ReadOptions) -> Table:
    """One row for each mention."""
    made = _Rows(path, ("mention",))
    form = "first, end, words and label with tabs between them, or {tokens, mentions: [{start, end, labels}]}"
    for number, line in _filled(path, options):
        try:
            if line.lstrip().startswith("{"):
                one = json.loads(line)
                for mention in one["mentions"]:
                    finest = max(mention["labels"], key=lambda label: (label.count("/"), label))
                    made.add(number, one["tokens"], finest, mention=[[mention["start"], mention["end"]]])
            else:
                start, end, words, label = line.split("\t")
                made.add(number, words.split(" "), label, mention=[[int(start), int(end)]])
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, f"line {number}", error, form) from error
    return made.table()


@reader("ace")
def read_ace(path: Path, options: ReadOptions) -> Table:
    """One row for each relation of each sentence."""
    made = _Rows(path, ("head", "tail"))
    form = (
        '{"sentences": [[words]], "relations": [[[head, head, tail, tail, label]]]}, a list for each sentence'
    )
    for number, line in _filled(path, options):
        try:
            one, before = json.loads(line), 0
            for words, relations in zip(one["sentences"], one["relations"], strict=True):
                for a, b, c, d, label in relations:
                    spans = [[a - before, b - before + 1]], [[c - before, d - before + 1]]
                    made.add(number, words, label, head=spans[0], tail=spans[1])
                before += len(words)
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, f"line {number}", error, form) from error
    return made.table()
