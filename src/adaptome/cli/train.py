"""`adaptome train`: carry out a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, apart, print_json, print_parts, print_table

EXAMPLES = """Examples:

adaptome train recipe.yaml

adaptome train recipe.yaml method.r=16 training.epochs=2 output=runs/r16

adaptome train gsm8k-lora training.max_steps=20 data.limit=64

adaptome train esc50-conformer --folds

adaptome train guanaco-qlora --memory

adaptome train two-stages.yaml training.resume=true
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("train", epilog=EXAMPLES)(train)


def _print_schema(wanted: bool) -> None:
    if wanted:
        from adaptome.recipe import recipe_json_schema

        print_json(recipe_json_schema())
        raise typer.Exit()


def train(
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
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, as method.r=16 training.epochs=2."),
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
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Tell the memory each run will take before it begins; its report shows both."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train as a recipe says: data, model, adapters, evaluation, and a folder that holds it all."""
    from adaptome.recipe import load_recipe
    from adaptome.training import run, run_folds, run_stages

    asked = load_recipe(recipe, changes or [])
    if folds and memory:
        raise typer.BadParameter(
            "it goes with a run or with stages, not with --folds.", param_hint="--memory"
        )
    foretell = _foretell if memory else None
    try:
        made: Any
        if folds:
            made = run_folds(asked, tell=_tell)
        elif asked.stages:
            made = run_stages(asked, tell=_tell, foretell=foretell)
        else:
            made = run(asked, foretell=foretell)
    except KeyboardInterrupt:
        print(_how_to_go_on(Path(asked.output.folder)), file=sys.stderr)
        raise typer.Exit(130) from None
    result = made.to_dict()
    if json:
        print_json(result)
    elif folds:
        _show_folds(result)
    elif asked.stages:
        for stage in result["stages"]:
            _show(stage, stage["name"])
    else:
        _show(result)


def _foretell(recipe: Any) -> int | None:
    """Tell what memory a run will take; None, and why, where that cannot be told."""
    from adaptome.compare.foretold import foretold_memory
    from adaptome.core.errors import AdaptomeError

    try:
        found = foretold_memory(recipe)
    except AdaptomeError as error:
        _tell(f"memory cannot be foretold: {error}")
        return None
    parts = {"base": found.weights, "adapter": found.adapter, "optimizer": found.optimizer, "step": found.step, "libraries": found.libraries + found.pieces}  # fmt: skip
    told = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in parts.items())
    _tell(f"memory: {found.total / 2**20:,.0f} MiB foretold ({told})")
    return found.total


def _how_to_go_on(folder: Path) -> str:
    """After an interruption; with folds, the checkpoints are those of the fold it was in."""
    from adaptome.training import last_checkpoint

    places = [folder, *sorted(folder.glob("fold-*")), *sorted(folder.glob("[0-9]*-*"))]
    found = [made for place in places if (made := last_checkpoint(place)) is not None]
    if found:
        return f"Interrupted: the same command with training.resume=true goes on from {found[-1]}."
    return "Interrupted before the first checkpoint: the same command starts anew. training.save_steps makes checkpoints more often."


def _show_folds(result: dict[str, Any]) -> None:
    for note in result["notes"]:
        print(f"note: {note}")
    mean, spread = result["mean"], result["deviation"]
    rows = [
        (f"fold {name}", *(f"{found[key]:.4f}" for key in mean)) for name, found in result["folds"].items()
    ]
    rows += [(name, *(f"{of[key]:.4f}" for key in mean)) for name, of in (("mean", mean), ("± deviation", spread))]  # fmt: skip
    print_table(("test", *mean), rows, title=f"{len(result['folds'])} folds, in {result['folder']}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _show(result: dict[str, Any], stage: str = "") -> None:
    for note in result["notes"]:
        print(f"note: {note}")
    rows: list[tuple[str, Any]] = list(apart(result["metrics"])[0].items())
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
    if result["foretold_memory_bytes"] is not None:
        rows.insert(-1, ("foretold", f"{result['foretold_memory_bytes'] / 2**20:,.0f} MiB"))
    if result["share_of_bound"] is not None:
        rows.insert(-2, ("of the machine's matmul rate", f"{100 * result['share_of_bound']:.0f} %"))
    title = f"{stage + ': ' if stage else ''}{result['task']} with {result['method']}"
    print_table(("", result["split"] or "training"), [(n, _shown(v)) for n, v in rows], title=title)
    print_parts(result["metrics"])


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
