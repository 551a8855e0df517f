"""CoNLL files: a token and its tag on every line, a blank line between sentences."""

from __future__ import annotations

import re
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of

_TAG = re.compile(r"^(?:O|[BIESLU]-\S+)$")
_TO_IOB2 = {"B": "B", "I": "I", "E": "I", "L": "I", "S": "B", "U": "B"}


@reader("conll", ".conll", ".bio", ".iob", ".iob2")
def read_conll(path: Path, options: ReadOptions) -> Table:
    """Columns `tokens` and `tags`: the first and the last field of every line.

    Fields are parted by tabs where a line has one, else by white space, or by `options.delimiter`. Lines that begin
    with -DOCSTART- and comment lines (`# key = value`) are passed over. `options.tags`:

    - convert: IOB1 (I-X opens an entity) and BIOES or BILOU become IOB2; what was changed is noted;
    - strict: anything but clean IOB2 is an error;
    - raw: tags are taken as they are (parts of speech, say).
    """
    sentences: list[tuple[int, list[str], list[str]]] = []
    tokens: list[str] = []
    tags: list[str] = []
    first, width, changed = 1, 0, 0
    for number, line in enumerate([*lines_of(path, options.encoding), ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens:
                changed += _to_iob2(path, first, tags, options.tags)
                sentences.append((first, tokens, tags))
                tokens, tags = [], []
            continue
        if not tokens and re.match(r"# \S+ = ", line):
            continue
        fields = _fields(path, number, line, options.delimiter, width)
        width = len(fields)
        first = first if tokens else number
        tokens.append(fields[0])
        tags.append(fields[-1])
    notes = (
        [f"{path}: {changed} tags were brought into IOB2 (data.tags: strict refuses them)."]
        if changed
        else []
    )
    columns = {"tokens": [s[1] for s in sentences], "tags": [s[2] for s in sentences]}
    return Table(str(path), columns, [s[0] for s in sentences], notes=notes, line_per_item=True)


def _fields(path: Path, number: int, line: str, delimiter: str | None, width: int) -> list[str]:
    fields = line.split(delimiter or "\t") if delimiter or "\t" in line else line.split()
    if len(fields) < 2:
        raise DataError(f"{path}, line {number}: expected a token and a tag, found {line!r}.")
    if width and len(fields) != width:
        raise DataError(
            f"{path}, line {number}: {len(fields)} fields, but the lines before have {width}: {line!r}."
        )
    if not fields[0].strip() or not fields[-1].strip():
        raise DataError(
            f"{path}, line {number}: the {'token' if not fields[0].strip() else 'tag'} is empty: {line!r}."
        )
    return [field.strip() for field in fields]


def _to_iob2(path: Path, first: int, tags: list[str], policy: str) -> int:
    """Bring `tags` into IOB2 in place; returns how many changed."""
    if policy == "raw":
        return 0
    changed, before = 0, "O"
    for i, tag in enumerate(tags):
        place = f"{path}, line {first + i}"
        if not _TAG.match(tag):
            raise DataError(
                f"{place}: {tag!r} is not a tag; expected O, or B- or I- and a type, such as B-PER.\n"
                "  For tags that are not spans (parts of speech, say) write data.tags: raw."
            )
        new = tag if tag == "O" else _TO_IOB2[tag[0]] + tag[1:]
        if new[0] == "I" and (before == "O" or before[1:] != new[1:]):
            new = "B" + new[1:]
        if new != tag:
            if policy == "strict":
                raise DataError(
                    f"{place}: {tag!r} after {before!r} is not IOB2. data.tags: convert makes it {new!r}."
                )
            changed += 1
        before = new
        tags[i] = new
    return changed
