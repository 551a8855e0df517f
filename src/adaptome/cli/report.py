"""`adaptome report`: finished runs as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json

EXAMPLES = """Examples:

adaptome report runs/adaptome

adaptome report runs/lora runs/dora --output both.html
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("report", epilog=EXAMPLES)(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Output folders of finished runs.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write.", show_default="report.html in the first RUN"
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a page about finished runs: curves, metrics, examples with predictions, cost, recipe.

    Of one run, or of several side by side. The page is one file that loads nothing. `adaptome train` writes one by itself.
    """
    from adaptome.training import write_report

    written = write_report(runs, output)
    if json:
        print_json({"report": str(written)})
    else:
        print(f"written to {written}")
