"""`adaptome eval`: score a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, apart, print_json, print_parts, print_table

EXAMPLES = """Examples:

adaptome eval runs/adaptome

adaptome eval runs/adaptome --split validation

adaptome eval runs/adaptome data.test=other.jsonl --json
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("eval", epilog=EXAMPLES)(evaluate)


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a finished run.", show_default=False)
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to its recipe, as data.test=other.jsonl."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test.", show_default="test, else validation")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score a finished run on one of its splits, or on other data."""
    from adaptome.training import evaluate as measure

    metrics = measure(run, split, changes or [])
    if json:
        print_json(metrics)
    else:
        whole, _ = apart(metrics)
        print_table(("metric", "value"), [(name, f"{value:.4f}") for name, value in whole.items()])
        print_parts(metrics)
