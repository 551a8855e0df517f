"""`adaptome merge`: write an adapter into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json

EXAMPLES = """Examples:

adaptome merge runs/adaptome merged-model

adaptome merge my-adapter merged-model --base path/to/base --dtype bfloat16

adaptome merge runs/adaptome merged-model --requantise --json

adaptome merge runs/adaptome merged.gguf --to gguf --dtype q8_0

adaptome merge runs/adaptome merged.onnx --to onnx
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("merge", epilog=EXAMPLES)(merge)


def merge(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER",
            help="The output folder of a finished run, or an adapter's.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="The folder, or file, to write the merged model to.", show_default=False
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="The base's id or path.", show_default="the one in the folder")
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="folder: of Hugging Face; gguf: a file for llama.cpp; onnx: a file for ONNX Runtime."
        ),
    ] = "folder",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or bfloat16; for gguf q8_0 too.",
            show_default="the model's; float16 for gguf, float32 for onnx",
        ),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="About how much a file holds.")] = "5GB",
    requantise: Annotated[
        bool,
        typer.Option(
            "--requantise",
            help="On a quantised base: quantise the merged weights again; else they are written dense.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write an adapter into its base, as a model that needs no adaptome, layer by layer; what was stopped goes on when called again."""
    import torch

    import adaptome as ad
    from adaptome.core.errors import MergeError, StateError, did_you_mean
    from adaptome.core.files import atomic_folder

    if to not in _WRITERS:
        raise MergeError(f"--to {to} is none of {', '.join(_WRITERS)}.{did_you_mean(to, _WRITERS)}")
    known = (
        ("float32", "float16")
        if to == "onnx"
        else ("float32", "float16", "bfloat16", *(("q8_0",) if to == "gguf" else ()))
    )
    if dtype not in (None, *known):
        raise MergeError(f"--dtype {dtype} is none of {', '.join(known)}.")
    if to != "folder" and requantise:
        raise MergeError(f"--requantise goes with --to folder, not with {to}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StateError(f"{output} is there and not empty.\n  Name a new folder for the merged model.")
    model, processor = _opened(run, base)
    if not hasattr(model, "save_pretrained"):
        raise MergeError(
            f"{type(model).__name__}, the model of {run}, is adaptome's own: merged, no other library could read it.\n"
            "  Keep the adapter, or train with a head of transformers (for sentences: task.pooling=cls)."
        )
    report: Any
    if to != "folder":
        report = _WRITERS[to](model, output, dtype, processor)
    elif requantise:
        report = ad.merge(model, keep=False, requantise=True)
        with atomic_folder(output) as folder:
            model.save_pretrained(folder)
            if processor is not None:
                processor.save_pretrained(folder)
    else:
        kind = None if dtype is None else getattr(torch, dtype)
        report = ad.save_merged(model, output, dtype=kind, shard_size=shard_size, processor=processor)
    if json:
        print_json({"output": str(output), **report.to_dict()})
    else:
        print(report)
        print(f"written to {output}")


def _gguf(model: Any, output: Path, dtype: str | None, processor: Any) -> Any:
    import adaptome as ad

    short = {None: "f16", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}[dtype]
    return ad.save_gguf(model, output, dtype=short, tokenizer=processor)


def _onnx(model: Any, output: Path, dtype: str | None, processor: Any) -> Any:
    import torch

    import adaptome as ad

    return ad.export_onnx(model.float() if dtype is None else model.to(getattr(torch, dtype)), output)


#: what --to names -> what writes it from model, output, dtype and processor
_WRITERS: dict[str, Any] = {"folder": None, "gguf": _gguf, "onnx": _onnx}


def _opened(adapter: Path, base: str | None) -> tuple[Any, Any]:
    """The model with its adapters, and its processor."""
    if (adapter / "adaptome.json").is_file() or (adapter / "adapter_config.json").is_file():
        from adaptome.interop.opened import open_adapter

        opened = open_adapter(adapter, base)
        return opened.model, opened.processor
    from adaptome.training import load_run

    loaded = load_run(adapter, single=True)
    return loaded.model, loaded.processor
