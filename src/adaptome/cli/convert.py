"""`adaptome convert`: write an adapter in another library's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json

EXAMPLES = """Examples:

adaptome convert runs/adaptome served

adaptome convert runs/adaptome served --energy 0.99

adaptome convert my-adapter served --base path/to/base --rank 16 --texts calibration.txt --force

adaptome convert kohya.safetensors for-diffusers --to diffusers --base path/to/pipeline

adaptome convert runs/adaptome adapter.gguf --to gguf
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("convert", epilog=EXAMPLES)(convert)


def convert(
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER",
            help="The output folder of a run, or an adapter's folder or file.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder or file to write.", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="peft-lora: LoRA that servers take, of any update of weights; peft: the method as PEFT has it; diffusers, kohya, lycoris: one file for image models; gguf: for llama.cpp.",
        ),
    ] = "peft-lora",
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="peft, diffusers, kohya, lycoris or gguf: what ADAPTER is.",
            show_default="told by its files",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of every layer.", show_default=False)] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Share of the squared singular values to keep, layer by layer.", show_default=False
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Largest accepted loss of the adapter's effect; alone it chooses the ranks.",
            show_default="0.1",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base's id or path.", show_default="the one in the folder")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Calibration texts, one a line, for an adapter folder; a run has its training data.",
            show_default=False,
        ),
    ] = None,
    batches: Annotated[int, typer.Option(help="How many calibration batches; 0 for none.", min=0)] = 8,
    task_type: Annotated[str | None, typer.Option(help="PEFT's, as CAUSAL_LM.", show_default=False)] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write although the loss is above the limit.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write an adapter for other libraries, and tell by layer and at the model's output what is lost."""
    import adaptome as ad
    from adaptome.core.checkpoint import readers
    from adaptome.core.errors import FormatError, did_you_mean
    from adaptome.interop.formats import writers

    for option, given, known in (("--to", to, writers()), ("--from", from_, readers())):
        if given is not None and given not in known:
            raise FormatError(
                f"{option} {given} is no format.{did_you_mean(given, known)} There are {', '.join(known)}."
            )
    model, name, data = _opened(adapter, base, texts, batches if to == "peft-lora" else 0, from_)
    report: Any
    if to == "peft-lora":
        report = ad.convert(
            model, output, name, rank=rank, energy=energy, max_error=max_error, batches=data, force=force, task_type=task_type
        )  # fmt: skip
    else:
        report = ad.export(
            model, output, name, format=to, rank=rank, tolerance=max_error, task_type=task_type
        )
    if json:
        print_json(report.to_dict())
    else:
        print(report)


def _opened(
    adapter: Path, base: str | None, texts: Path | None, count: int, format: str | None
) -> tuple[Any, str, list[Any] | None]:
    """The model with its adapter, the adapter's name, and calibration batches."""
    import adaptome as ad

    if (adapter / "recipe.yaml").is_file():
        from adaptome.training import calibration, load_run

        loaded = load_run(adapter, single=True)
        return loaded.model, ad.active(loaded.model)[0], calibration(loaded, count) if count else None
    from adaptome.interop.opened import open_adapter

    opened = open_adapter(adapter, base, format=format)
    return opened.model, "default", _encoded(texts, opened.processor, count) if texts and count else None


def _encoded(texts: Path, processor: Any, count: int) -> list[Any]:
    """Batches of eight texts, cut to 512 tokens."""
    from adaptome.core.errors import DataError
    from adaptome.data.textfile import read_text

    lines = [line for line in read_text(texts).splitlines() if line.strip()][: 8 * count]
    if not lines:
        raise DataError(f"{texts} holds no line of text.")
    if processor is None:
        raise DataError("the base's folder has no tokenizer to read texts with.")
    if getattr(processor, "pad_token", None) is None and getattr(processor, "eos_token", None) is not None:
        processor.pad_token = processor.eos_token
    cut = {"padding": True, "truncation": True, "max_length": 512, "return_tensors": "pt"}
    return [dict(processor(lines[i : i + 8], **cut)) for i in range(0, len(lines), 8)]
