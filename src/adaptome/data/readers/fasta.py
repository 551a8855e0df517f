"""FASTA files of sequences, UniRef's among them."""

from __future__ import annotations

import re
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of

#: >UniRef50_Q9K794 Putative AgrB-like protein n=2 Tax=Bacillus TaxID=1386 RepID=AGRB_BACHD
_UNIREF = re.compile(
    r"^(UniRef\d+_\S+)\s+(.*?)\s+n=(\d+)(?:\s+Tax=(.*?))?(?:\s+TaxID=(\S+))?(?:\s+RepID=(\S+))?\s*$"
)


@reader("fasta", ".fasta", ".fa", ".faa", ".fas")
def read_fasta(path: Path, options: ReadOptions) -> Table:
    """Columns name, description and sequence; of UniRef files also members (of the cluster) and taxon. Records may have several lines.

    Letters are left as they are: what is done about unusual ones is the task's to say.

    Raises:
        DataError: a sequence before the first header, a header without name, or a record without sequence; names the line.
    """
    records: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        text = line.strip()
        if text.startswith(">"):
            if not text[1:].strip():
                raise DataError(f"{path}, line {number}: a header (>) without a name.")
            records.append((number, text[1:].strip(), []))
        elif text and not text.startswith(";"):  # a comment of old files
            if not records:
                raise DataError(
                    f"{path}, line {number}: a sequence before the first header; a FASTA record begins with '>name'."
                )
            if ">" in text:
                raise DataError(
                    f"{path}, line {number}: '>' within a sequence. Is a line's end missing before a header?"
                )
            records[-1][2].append("".join(text.split()))
    for number, header, parts in records:
        if not parts:
            raise DataError(f"{path}, line {number}: the record {header.split()[0]!r} has no sequence.")
    found = [_UNIREF.match(header) for _, header, _ in records]
    columns: dict[str, list[object]] = {
        "name": [header.split(maxsplit=1)[0] for _, header, _ in records],
        "description": [
            u.group(2) if u else header.partition(" ")[2].strip()
            for (_, header, _), u in zip(records, found, strict=True)
        ],
        "sequence": ["".join(parts) for _, _, parts in records],
    }
    if records and all(found):
        columns["members"] = [int(u.group(3)) for u in found if u]
        columns["taxon"] = [u.group(4) or "" for u in found if u]
    return Table(str(path), columns, [number for number, _, _ in records])
