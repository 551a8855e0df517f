"""`adaptome compare`: methods side by side."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome compare recipe.yaml

adaptome compare placement --seeds 1 training.max_steps=20 data.limit=64

adaptome compare recipe.yaml --method lora --method series --budget lora:r=8 --seeds 5 training.epochs=1
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("compare", epilog=EXAMPLES)(compare)


def compare(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file with a section `compare`, or the name of such a recipe that comes with adaptome.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, as compare.methods.0.r=16."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Compare these on their own targets, not the recipe's; may be repeated."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The same count for all: 20000, 0.1% of the base, or lora:r=8.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many, from 0.")] = None,
    json: JsonOption = False,
) -> None:
    """Train several methods on one task with several seeds, and tell them apart in a table and a report."""
    from adaptome.compare import compare as study
    from adaptome.recipe import load_recipe

    said = [*(changes or [])]
    if method:
        said.append(f"compare.methods=[{', '.join(method)}]")
    if budget is not None:
        said.append(f"compare.budget={budget!r}")
    if seeds is not None:
        said.append(f"compare.seeds={list(range(seeds))}")
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
    rows = [
        (
            row["label"],
            row["parameters"],
            f"{row['share']:.3%}",
            f"{row['mean']:.4f}" + ("" if row["low"] is None else f" ± {row['mean'] - row['low']:.4f}"),
            f"{row['seconds']:.1f}",
        )
        for row in found["rows"]
    ]
    seeds = len(found["seeds"])
    title = f"{found['task']}: {found['metric']} on {found['split']}, {seeds} seed{'s' * (seeds > 1)}"
    print_table(("method", "parameters", "of all", found["metric"], "seconds"), rows, title=title)
    from adaptome.compare.page import verdict

    print(f"\n{verdict(found)}")
    if found["by_method"]:
        means = {row["label"]: row["mean"] for row in found["rows"]}
        for name, labels in found["by_method"].items():
            print(f"  {name}: " + ", ".join(f"{label} ({means[label]:.4f})" for label in labels))
    print(f"Written to {found['folder']}: comparison.json, report.html")
