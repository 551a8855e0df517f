"""`adaptome perturb`: what a model learns of worked answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome perturb long-cot-demo

adaptome perturb long-cot-demo --kind shuffle --kind digits --seeds 1

adaptome perturb recipe.yaml --kind shuffle:0.5 --kind delete:0.5 --seeds 5 --jobs 2 output=runs/half
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("perturb", epilog=EXAMPLES)(perturb)


def perturb(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file of the task `long-reasoning`, or the name of such a recipe that comes with adaptome.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it, as training.epochs=1.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="wrong, digits, keywords, shuffle, delete or insert, at the paper's shares, or at one of its own: shuffle:0.5. Default: all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 3,
    jobs: Annotated[
        int, typer.Option(min=0, help="Runs at once, each in its own process; 0: one on each GPU.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a Ray cluster to run on: host:port, auto, or local."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train on whole reasoning traces and on spoiled ones, and tell what each kind of spoiling costs.

    Traces keep or lose their content (wrong answers, corrupted digits, keywords taken out) or their structure (steps shuffled,
    deleted, replaced by other traces'). Begun again, it goes on where it stopped.
    """
    from adaptome.compare.perturbation import perturbation_study
    from adaptome.recipe import load_recipe

    options: dict[str, Any] = {"jobs": jobs, "ray": ray}
    try:
        found = perturbation_study(
            load_recipe(recipe, changes or []),
            kind or (),
            seeds,
            lambda line: print(line, file=sys.stderr),
            [],
            **options,
        ).to_dict()
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where it stopped.", file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    def with_half(value: float, half: float | None, sign: str = "") -> str:
        return f"{value:{sign}.1%}" + ("" if half is None else f" ± {half:.1%}")

    rows = [
        (
            row["label"],
            with_half(row["mean"], row["half"]),
            with_half(row["lost"], row["lost_half"], "+"),
            f"{row['signs'].get('unread', 0):.1%}",
            f"{row['signs'].get('tokens', 0):.1f}",
            f"{row['signs'].get('keywords', 0):.2f}",
        )
        for row in found["rows"]
    ]
    seeds = len(found["seeds"])
    print_table(
        ("traces", found["metric"], "lost", "unread", "tokens", "keywords"),
        [("base", f"{found['base']:.1%}", "", "", "", ""), *rows],
        title=f"{found['metric']} by perturbation, {seeds} seed{'s' * (seeds > 1)}",
    )
    told = [f"{what} {found[what]:.1%}" for what in ("content", "structure") if found[what] is not None]
    print(f"\nLost on average where what is spoiled is: {', '.join(told)}.")
    print(
        f"Written to {Path(found['folder'])}: perturbation.html, perturbation.json, and a comparison's files"
    )
