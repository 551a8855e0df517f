"""`adaptome train`: carry out a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("train")(train)


def _print_schema(wanted: bool) -> None:
    if wanted:
        from adaptome.recipe import recipe_json_schema

        print_json(recipe_json_schema())
        raise typer.Exit()


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, as method.r=16 training.epochs=2."),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON Schema of recipes, for editors, and exit.",
        ),
    ] = False,
    folds: Annotated[
        bool, typer.Option("--folds", help="Train once for every fold of the data, and tell the mean.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train as a recipe says: data, model, adapters, evaluation, and a folder that holds it all."""
    from adaptome.recipe import load_recipe
    from adaptome.training import run, run_folds

    asked = load_recipe(recipe, changes or [])
    made = run_folds(asked, tell=lambda line: print(line, file=sys.stderr)) if folds else run(asked)
    result = made.to_dict()
    if json:
        print_json(result)
    elif folds:
        _show_folds(result)
    else:
        _show(result)


def _show_folds(result: dict[str, Any]) -> None:
    for note in result["notes"]:
        print(f"note: {note}")
    mean, spread = result["mean"], result["deviation"]
    rows = [
        (f"fold {name}", *(f"{found[key]:.4f}" for key in mean)) for name, found in result["folds"].items()
    ]
    rows += [(name, *(f"{of[key]:.4f}" for key in mean)) for name, of in (("mean", mean), ("± deviation", spread))]  # fmt: skip
    print_table(("test", *mean), rows, title=f"{len(result['folds'])} folds, in {result['folder']}")


def _show(result: dict[str, Any]) -> None:
    for note in result["notes"]:
        print(f"note: {note}")
    rows: list[tuple[str, Any]] = [(name, value) for name, value in result["metrics"].items()]
    share = 100 * result["trainable_parameters"] / result["total_parameters"]
    rows += [
        ("trainable parameters", f"{result['trainable_parameters']:,} ({share:.3f} %)"),
        (
            "steps",
            f"{result['steps']:,}" + (f", kept {result['best_step']:,}" if result["best_step"] else ""),
        ),
        ("seconds", f"{result['seconds']:.1f}"),
        ("peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB"),
        ("adapter", result["adapter"]),
    ]
    title = f"{result['task']} with {result['method']}"
    print_table(("", result["split"] or "training"), [(n, _shown(v)) for n, v in rows], title=title)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
