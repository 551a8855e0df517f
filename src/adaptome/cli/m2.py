"""`adaptome m2`: the edits of corrected sentences, and their score."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXTRACT = """Examples:

adaptome m2 extract corrections.tsv -o corrections.m2

adaptome m2 score corrections.m2 references.m2

adaptome m2 extract corrections.tsv -o corrections.m2 --thesaurus cilin.txt --confusions confusion_dict.txt --readings
"""
SCORE = """Example:

adaptome m2 score corrections.m2 references.m2 --json
"""


class Ties(str, enum.Enum):
    pooled = "pooled"
    first = "first"


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    group = typer.Typer(
        help="Edits of corrected sentences: M2 files and scores.", no_args_is_help=True, epilog=EXTRACT
    )
    group.command("extract", epilog=EXTRACT)(extract)
    group.command("score", epilog=SCORE)(score)
    app.add_typer(group, name="m2")


def extract(
    file: Annotated[
        Path,
        typer.Argument(
            help="Lines of an id, a sentence and its corrections, parted by tabs.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The M2 file to write.", show_default=False)],
    ties: Annotated[
        Ties, typer.Option(help="Of alignments that cost the same: all, as one annotator's, or the first.")
    ] = Ties.pooled,
    thesaurus: Annotated[Path | None, typer.Option(help="ChERRANT's cilin.txt.")] = None,
    confusions: Annotated[Path | None, typer.Option(help="ChERRANT's confusion_dict.txt.")] = None,
    readings: Annotated[
        bool, typer.Option("--readings", help="Take readings of characters from pypinyin.")
    ] = False,
) -> None:
    """Write the edits between sentences and their corrections.

    Character by character, as ChERRANT does. With its three sources of costs the file is the tool's own, to the letter; without them a
    constant stands for a substitution.
    """
    from tqdm import tqdm

    from adaptome.core.errors import DataError
    from adaptome.data.textfile import read_text
    from adaptome.grammar import Annotator, Substitution
    from adaptome.grammar.m2 import block, write_m2

    by = Annotator(ties.value, Substitution.from_files(thesaurus, confusions, readings))
    blocks = []
    for number, line in enumerate(tqdm(read_text(file).splitlines(), desc="sentences", disable=None), 1):
        _, *fields = line.split("\t")
        if len(fields) < 2:
            raise DataError(
                f"{file}, line {number}: expected an id, a sentence and its corrections, parted by tabs; found {line[:80]!r}."
            )
        blocks.append(block(fields[0], fields[1:], by))
    write_m2(output, blocks)
    print(f"{len(blocks)} sentences written to {output}")


def score(
    corrections: Annotated[
        Path, typer.Argument(help="M2 file of a system's corrections.", show_default=False)
    ],
    references: Annotated[
        Path, typer.Argument(help="M2 file of the annotators', of the same sentences.", show_default=False)
    ],
    json: JsonOption = False,
) -> None:
    """Score corrections by their edits: precision, recall and F0.5."""
    from adaptome.grammar.m2 import scored

    found = scored(corrections, references).to_dict()
    if json:
        print_json(found)
    else:
        print_table(list(found), [[f"{v:.4f}" if isinstance(v, float) else v for v in found.values()]])
