"""`adaptome inspect`: what a method would train, and the memory that takes, without weights."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json
from adaptome.cli._settings import read_settings

EXAMPLES = """Examples:

adaptome inspect llama-2-7b --method lora --targets q --targets v --set r=64 --batch 4 --length 512 --dtype bf16

adaptome inspect ./my-model --method ia3

adaptome inspect llama-3.2-1b --method dora --budget 0.1%

adaptome inspect roberta-base --task text-classification --method lora --train classifier --json
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("inspect", epilog=EXAMPLES)(inspect)


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A built-in name (an unknown one lists them), a folder, a config.json or a hub id.",
            show_default=False,
        ),
    ],
    method: Annotated[str | None, typer.Option(help="The method; without one, full fine-tuning.")] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="A role or pattern of layers; may be repeated.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="The count instead of a size: 20000, 0.1% of the base, or lora:r=8."),
    ] = None,
    train: Annotated[list[str] | None, typer.Option(help="A module trained whole; may be repeated.")] = None,
    task: Annotated[str | None, typer.Option(help="The head to build, as text-classification.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a step.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a sample.")] = 512,
    dtype: Annotated[str, typer.Option(help="Of the base's weights: fp32, bf16 or fp16.")] = "bf16",
    optimizer: Annotated[str, typer.Option(help="adamw, adamw-8bit, adafactor, lion, sgd, ...")] = "adamw",
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Keep only the blocks' inputs.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Tell what a method would train on a model and what a training step would take; reads no weights."""
    from adaptome import inspection

    chosen = read_settings(settings)
    own = sorted(set(chosen) & set(inspection.inspect.__kwdefaults__ or {}))
    if own:
        raise typer.BadParameter(
            f"{own[0]} is no setting of a method; it is an option of its own.", param_hint="--set"
        )
    found = inspection.inspect(
        model, method, targets=targets or None, train=train or (), task=task, batch=batch, length=length, dtype=dtype,
        optimizer=optimizer, gradient_checkpointing=checkpointing, budget=budget, **chosen,
    )  # fmt: skip
    if json:
        print_json(found.to_dict())
    else:
        print(found)
