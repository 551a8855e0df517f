"""`adaptome compare`: methods side by side."""

from __future__ import annotations

import re
import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome compare recipe.yaml

adaptome compare placement --seeds 1 training.max_steps=20 data.limit=64

adaptome compare recipe.yaml --methods lora,dora,mos,paca --budget 0.1%,1% --seeds 3 --trials 10

adaptome compare recipe.yaml --method lora --method series --budget lora:r=8 --seeds 5 training.epochs=1

adaptome compare recipe.yaml --method lora --vary method.r=[4,16,64] --vary data.limit=[100,1000]
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
    methods: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="The same in one word: lora,dora,paca.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="The same count for all: 20000, 0.1% of the base, or lora:r=8; of several (0.1%,1%) a row each."
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=[V,V]",
            help="A row for each of these values too, as data.limit=[100,1000]; of several keys for each combination.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many, from 0.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Runs by which each row's learning rate is searched for on validation."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Runs at once, each in its own process; 0: one on each GPU.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a Ray cluster to run on: host:port, auto, or local."),
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEFT's method comparison (CSV), to lay beside.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train several methods on one task with several seeds, and tell them apart in a table and a report."""
    from adaptome.cli._live import LiveTable
    from adaptome.compare import compare as study
    from adaptome.recipe import load_recipe

    said = [*(changes or [])]
    names = [*(method or []), *(name.strip() for name in (methods or "").split(",") if name.strip())]
    if names:
        said.append(f"compare.methods=[{', '.join(names)}]")
    if vary:
        from adaptome.compare.vary import variants_of

        said.append(f"compare.variants={dumps(variants_of(vary))}")
    if budget is not None:
        several = re.split(r",(?![A-Za-z_]\w*=)", budget)  # lora:r=8,alpha=16 is one
        said.append(f"compare.budget={several if len(several) > 1 else budget!r}")
    if trials is not None:
        said.append(f"compare.trials={trials}")
    if seeds is not None:
        said.append(f"compare.seeds={list(range(seeds))}")
    read = load_recipe(recipe, said)
    live = LiveTable(read.compare.seeds) if sys.stderr.isatty() and read.compare else None
    options: dict[str, Any] = {"jobs": jobs, "ray": ray, "beside": beside}
    try:
        if live is not None:
            with live:
                found = study(read, callbacks=[], watch=live, **options).to_dict()
        else:
            found = study(read, tell=lambda line: print(line, file=sys.stderr), **options).to_dict()
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where it stopped.", file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    fast = [name for name in ("examples_per_second",) if all(name in row["metrics"] for row in found["rows"])]
    rows = [
        (
            row["label"],
            row["parameters"],
            f"{row['share']:.3%}",
            f"{row['mean']:.4f}" + ("" if row["low"] is None else f" ± {row['mean'] - row['low']:.4f}"),
            f"{row['seconds']:.1f}",
            f"{1000 * row['step_seconds']:.1f}",
            *(f"{row['metrics'][name]:,.0f}" for name in fast),
        )
        for row in found["rows"]
    ]
    seeds = len(found["seeds"])
    title = f"{found['task']}: {found['metric']} on {found['split']}, {seeds} seed{'s' * (seeds > 1)}"
    print_table(
        (
            "method",
            "parameters",
            "of all",
            found["metric"],
            "seconds",
            "ms per step",
            *("a second" for _ in fast),
        ),
        rows,
        title=title,
    )
    from adaptome.compare.page import verdict

    print(f"\n{verdict(found)}")
    if found["by_method"]:
        means = {row["label"]: row["mean"] for row in found["rows"]}
        for name, labels in found["by_method"].items():
            print(f"  {name}: " + ", ".join(f"{label} ({means[label]:.4f})" for label in labels))
    print(f"Written to {found['folder']}: report.html, results.md, results.parquet, comparison.json")
