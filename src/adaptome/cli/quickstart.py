"""`adaptome quickstart`: the main job, without arguments and without network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json

OUTPUT = "quickstart-output"


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("quickstart")(quickstart)


def quickstart(
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path(OUTPUT),
    predict: Annotated[
        str | None, typer.Option(metavar="SENTENCE", help="Classify this instead, by a trained adapter.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help=f"With --predict: the adapter's folder [default: {OUTPUT}/lora].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Adapt a packaged sentence encoder to a task made from Python's own documentation, and compare methods.

    Trains a linear probe and two adapters, and writes the adapters, metrics.json and report.html.
    """
    if adapter is not None and predict is None:
        raise typer.BadParameter("goes with --predict.", param_hint="--adapter")
    if predict is not None:
        _predict(adapter or output / "lora", predict, json)
        return
    from rich.console import Console

    from adaptome.quickstart import quickstart as compare

    metrics = compare(output, console=Console(stderr=True) if json else None)
    if json:
        print_json(metrics)


def _predict(adapter: Path, sentence: str, json: bool) -> None:
    from adaptome.quickstart.jobs import run_job

    found = run_job("predict", adapter, sentence)
    if json:
        print_json(found)
    else:
        print(f"{found['label']} ({found['probabilities'][found['label']]:.0%})")
