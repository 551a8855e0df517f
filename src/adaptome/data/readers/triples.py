"""Triples of a knowledge graph, one a line; and the word on data sets that come as pickles."""

from __future__ import annotations

from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of


@reader("triples", ".triples")
def read_triples(path: Path, options: ReadOptions) -> Table:
    """Columns `head`, `relation` and `tail`, tabs between them (or `options.delimiter`), no line of names."""
    rows, places = [], []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(options.delimiter or "\t")]
        if len(fields) != 3 or not all(fields):
            raise DataError(
                f"{path}, line {number}: expected head, relation and tail with tabs between them, found {line.strip()!r}."
            )
        rows.append(fields)
        places.append(number)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("head", "relation", "tail"))}
    return Table(str(path), columns, places)


@reader("pickle", ".pkl", ".pickle")
def refuse_pickle(path: Path, options: ReadOptions) -> Table:
    """No pickle is read: it may run whatever it likes.

    Raises:
        DataError: always; tells how BetaE's data sets are converted.
    """
    raise DataError(
        f"{path} is a pickle, and pickles are not read: one can run any program.\n"
        f"  A data set in BetaE's format is converted without running it: python -m adaptome.graphs.betae {path.parent} queries/"
    )
