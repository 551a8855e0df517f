"""`adaptome merge`: write a finished run's adapters into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json

EXAMPLES = """Examples:

adaptome merge runs/adaptome merged-model

adaptome merge runs/adaptome merged-model --requantise --json
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("merge", epilog=EXAMPLES)(merge)


def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a finished run.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUTPUT", help="The folder to write the merged model to.", show_default=False),
    ],
    requantise: Annotated[
        bool, typer.Option("--requantise", help="On a quantised base: dequantise, merge and quantise again.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a finished run's adapters into its base, and save that as a model that needs no adaptome."""
    import adaptome as ad
    from adaptome.core.errors import MergeError, StateError
    from adaptome.core.files import atomic_folder
    from adaptome.training import load_run

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StateError(f"{output} is there and not empty.\n  Name a new folder for the merged model.")
    loaded = load_run(run)
    if not hasattr(loaded.model, "save_pretrained"):
        raise MergeError(
            f"{type(loaded.model).__name__}, the model of {run}, is adaptome's own: merged, no other library could read it.\n"
            "  Keep the adapter, or train with a head of transformers (for sentences: task.pooling=cls)."
        )
    report = ad.merge(loaded.model, keep=False, requantise=requantise)
    with atomic_folder(output) as folder:
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
    if json:
        print_json({"output": str(output), **report.to_dict()})
    else:
        print(report)
        print(f"written to {output}")
