"""`adaptome quantize`: write a model with its linear layers in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json
from adaptome.cli._settings import read_settings

EXAMPLES = """Examples:

adaptome quantize ./my-model ./my-model-4bit --bits 4 --scheme uniform

adaptome quantize ./my-model ./my-model-3bit --bits 3 --scheme gptq --text corpus.txt --set magr=True

adaptome quantize ./my-model ./my-model-gptq --scheme gptq --text corpus.txt --format gptq

adaptome quantize ./my-model ./my-model-sketch --scheme sketch --set tables=4 --text corpus.txt --json
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("quantize", epilog=EXAMPLES)(quantize)


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a hub id.", show_default=False)],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder to write to.", show_default=False)
    ],
    bits: Annotated[int, typer.Option(min=1, max=8, help="Of a weight's code.")] = 4,
    scheme: Annotated[str, typer.Option(help="nf4, uniform, gptq or sketch.")] = "uniform",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the scheme; may be repeated."),
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="A role or pattern of layers; may be repeated.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text file to calibrate on; gptq needs one, sketch takes one.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration sample.")] = 512,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples.")] = 32,
    format: Annotated[
        str,
        typer.Option(help="Of the folder: adaptome, or gptq (uniform and gptq; for vLLM, GPTQModel, ...)."),
    ] = "adaptome",
    json: JsonOption = False,
) -> None:
    """Quantise a causal language model's linear layers, and save it as a folder that loads again."""
    from transformers import AutoModelForCausalLM

    from adaptome.core.errors import MethodError, StateError
    from adaptome.core.files import atomic_folder
    from adaptome.quantization.checkpoints import save_gptq
    from adaptome.quantization.quantizing import quantize as run
    from adaptome.quantization.schemes import get_scheme
    from adaptome.recipe.schema import ModelSection
    from adaptome.tasks.models import load_config, load_pretrained, load_tokenizer

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StateError(f"{output} is there and not empty.\n  Name a new folder for the quantised model.")
    if format not in ("adaptome", "gptq"):
        raise MethodError(f"--format {format!r} is not known; there are adaptome and gptq.")
    chosen = get_scheme(scheme, bits=bits, **read_settings(settings))
    spec = ModelSection(name=model, dtype="auto")
    tokenizer = load_tokenizer(spec)
    loaded: Any = load_pretrained(AutoModelForCausalLM, spec, load_config(spec))[0]
    batches = None if text is None else _batches(tokenizer, text, length, samples)
    report = run(loaded, chosen, targets=targets or "all-linear", batches=batches)
    with atomic_folder(output) as folder:
        told = str(output)
        if format == "gptq":
            told = str(save_gptq(loaded, folder)).replace(str(folder), str(output))
        else:
            loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if json:
        print_json({"output": str(output), "format": format, **report.to_dict()})
    else:
        print(report)
        print(f"written to {told}")


def _batches(tokenizer: Any, text: Path, length: int, samples: int) -> list[dict[str, Any]]:
    """The file's first tokens, cut into samples of equal length."""
    import torch

    from adaptome.core.errors import DataError

    if not text.is_file():
        raise DataError(f"{text}: no such file.\n  Give a text file to calibrate on.")
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    count = min(samples, len(ids) // length) or 1
    rows = [ids[i * length : (i + 1) * length] for i in range(count)]
    if len(rows[0]) < 2:
        raise DataError(f"{text} holds {len(ids)} tokens: too few to calibrate on.")
    return [{"input_ids": torch.tensor([row])} for row in rows]
