"""`adaptome search`: find settings."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome search recipe.yaml

adaptome search recipe.yaml --trials 40

adaptome search recipe.yaml search.sampler=gp search.storage=postgresql://host/studies
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("search", epilog=EXAMPLES)(search)


def search(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file with a section `search`, or the name of such a recipe that comes with adaptome.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, as training.epochs=2."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Runs in all, those of earlier calls counted.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search for settings on the validation split; begun again, it goes on where it stopped."""
    from adaptome.compare.search import search as study
    from adaptome.recipe import load_recipe

    said = [*(changes or []), *([] if trials is None else [f"search.trials={trials}"])]
    read = load_recipe(recipe, said)
    try:
        found = study(read, tell=lambda line: print(line, file=sys.stderr)).to_dict()
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where it stopped.", file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    best, keys = found["best"], list(found["best"]["settings"])
    rows = [
        (
            f"{trial['number']}{' (best)' if trial['number'] == best['number'] else ''}",
            *(_shown(trial["settings"].get(key)) for key in keys),
            _shown(trial["value"]) if trial["state"] == "complete" else trial["state"],
        )
        for trial in found["trials"]
    ]
    title = f"{len(rows)} trials: {found['metric']} on validation"
    print_table(("trial", *keys, found["metric"]), rows, title=title)
    if found["test"]:
        print(f"the best on test: {', '.join(f'{k} {v:.4f}' for k, v in found['test'].items())}")
    print(f"Written to {found['folder']}: search.json, best.yaml; the best run is {best['folder']}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
