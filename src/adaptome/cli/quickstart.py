"""`adaptome quickstart`: a real model adapted to real data, with no arguments and no network."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json

EXAMPLES = """Examples:

adaptome quickstart

adaptome quickstart -o my-folder --json
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("quickstart", epilog=EXAMPLES)(quickstart)


def quickstart(
    output: Annotated[str, typer.Option("--output", "-o", help="The folder to write.")] = "quickstart-output",
    json: JsonOption = False,
) -> None:
    """Adapt a real model to real data, compare methods, write a report: minutes on a CPU.

    Takes a small sentence encoder that comes as a package and docstrings of the Python on this machine, so that
    no network is used. Trains a linear probe, LoRA and a bottleneck adapter to tell which module a docstring is from.
    """
    try:
        from rich.console import Console

        from adaptome.quickstart import quickstart as run

        # Progress is for people; --json leaves the standard output to the result.
        metrics = run(output, console=Console(stderr=json))
    except KeyboardInterrupt:
        typer.echo("Interrupted: nothing was written.", err=True)
        raise typer.Exit(130) from None
    if json:
        print_json(metrics)
