"""`adaptome continual`: learn a stream of tasks."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome continual lae-demo

adaptome continual lae-demo stages.1.continual.strategy=sequential output=runs/lae-demo-sequential

adaptome continual recipe.yaml training.resume=true
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("continual", epilog=EXAMPLES)(continual)


def continual(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or the name of a recipe that comes with adaptome.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, as continual.strategy=replay."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Learn tasks that arrive one after another, and score each after every other."""
    from adaptome.recipe import load_recipe
    from adaptome.training import run_continual, run_stages

    asked = load_recipe(recipe, changes or [])
    try:
        made: Any = run_stages(asked, tell=_tell).last if asked.stages else run_continual(asked, tell=_tell)
    except KeyboardInterrupt:
        print("Interrupted: the same command with training.resume=true goes on.", file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        print_json(made.to_dict())
    else:
        _show(made.to_dict())


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _show(result: dict[str, Any]) -> None:
    for note in result["notes"]:
        print(f"note: {note}")
    told = result["continual"]
    if told is not None:
        for scenario, matrix in told["matrices"].items():
            rows = [
                (name, *("" if value is None else f"{value:.3f}" for value in row))
                for name, row in zip(told["rounds"], matrix, strict=True)
            ]
            print_table(("after", *told["tasks"]), rows, title=f"{told['metric']}, {scenario}-incremental")
    values = [(name, f"{value:.4f}") for name, value in result["metrics"].items()]
    values.append(("trainable parameters", f"{result['trainable_parameters']:,}"))
    print_table(("", result["split"] or "training"), values, title=f"in {result['folder']}")
