"""An adapter as LoRA in one GGUF file, as llama.cpp's `--lora` reads it.

    general.type = adapter, adapter.type = lora, adapter.lora.alpha; blk.0.attn_q.weight.lora_a [r, in], .lora_b [out, r]

One rank and alpha = rank, the scale inside B. The embedding's first factor lies the other way round, `[tokens, r]`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.checkpoint import LoadReport, register_reader
from adaptome.core.errors import FormatError, KeyMismatchError, MergeError, NonFiniteError
from adaptome.core.files import staged_file
from adaptome.core.state import root_of
from adaptome.interop.formats import (
    Asked,
    ExportReport,
    base_of,
    provenance,
    refuse_not_finite,
    register_writer,
)
from adaptome.interop.installing import install
from adaptome.interop.llama_cpp.file import read_gguf
from adaptome.interop.llama_cpp.names import (
    architecture_of,
    gguf_package,
    halves,
    heads_of,
    tensor_names,
    turned,
    unknown_name,
)
from adaptome.interop.lora_factors import lora_factors


@register_writer("gguf")
def write_adapter(asked: Asked) -> ExportReport:
    """An adapter as a GGUF file; see `export`."""
    gguf, root, attachment = gguf_package(), asked.root, asked.attachment
    architecture = architecture_of(root, "adapter")
    if asked.path.is_dir() or asked.path.suffix.lower() != ".gguf":
        raise MergeError(f"{asked.path}: a GGUF adapter is one file; give it a name that ends in .gguf.")
    if attachment.heads:
        raise MergeError(
            f"{next(iter(attachment.heads))} is trained whole, which a GGUF adapter has no place for.\n  Merge, and write the model."
        )
    names = tensor_names(root, architecture)
    factors = lora_factors(attachment, asked.rank)
    errors = {path: f.error for path, f in factors.items()}
    asked.within(errors)
    r = max(f.A.shape[-2] for f in factors.values())
    tensors: dict[str, Tensor] = {}
    for path, f in factors.items():
        host = attachment.adapters[path].host
        if path not in names or host.kind not in ("linear", "embedding"):
            raise MergeError(
                f"{path} is a {host!r}, for which llama.cpp's {architecture.name} has no tensor.{unknown_name(path, names)}\n  Leave it out of the targets, or merge."
            )
        if names[path] == "output" and getattr(root.config, "tie_word_embeddings", False):
            raise MergeError(
                f"{path} is tied to the embedding here, and llama.cpp has no tensor for it.\n  Merge, and write the model."
            )
        A = F.pad(f.A, (0, 0, 0, r - f.A.shape[-2]))
        B = turned(root, architecture, names[path], F.pad(f.B, (0, r - f.B.shape[-1])))
        tensors[f"{names[path]}.weight.lora_a"] = A.t() if host.kind == "embedding" else A
        tensors[f"{names[path]}.weight.lora_b"] = B
    refuse_not_finite(tensors)
    with staged_file(asked.path) as place:
        writer = gguf.GGUFWriter(place, architecture.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(r))
        writer.add_name(attachment.name)
        if (base := base_of(root)) is not None:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, str(base))
        for key, value in provenance(root, attachment, tensors).items():
            writer.add_string(f"adaptome.{key}", value)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().numpy())
        finish(writer)
    note = f"llama.cpp: --lora {asked.path}"
    return ExportReport(str(asked.path), "gguf", r, errors, (note,))


def finish(writer: Any) -> None:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@register_reader("gguf", lambda path: path.is_file() and path.suffix.lower() == ".gguf")
def load_adapter(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, trainable: bool = False
) -> LoadReport:
    """Put the adapter of a GGUF file on a model of transformers.

    Raises:
        CheckpointError: a subclass for each fault; the model is then as it was.
    """
    source, root = str(folder), root_of(model)
    metadata, tensors = read_gguf(Path(folder))
    if (
        metadata.get("general.type") != "adapter"
        or metadata.get("adapter.type") != "lora"
        or "adapter.alora.invocation_tokens" in metadata
    ):
        raise FormatError(f"{source} is no adapter of the type lora; a model of one file is not read here.")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if type(alpha) is not float or abs(alpha) > 1e9:
        raise FormatError(f"{source}: adapter.lora.alpha is no number.")
    try:
        architecture = architecture_of(root, "adapter")
    except MergeError as error:
        raise FormatError(f"{source}: {error}") from error
    if metadata.get("general.architecture") != architecture.name:
        raise FormatError(
            f"{source} is for {metadata.get('general.architecture')!r}; the model is {architecture.name!r}."
        )
    names = tensor_names(root, architecture)
    paths = {f"{name}.weight": path for path, name in names.items()}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        stem, _, role = key.rpartition(".")
        if role not in ("lora_a", "lora_b") or stem not in paths:
            raise KeyMismatchError(
                f"{source}: the model has no layer for {key!r}.{unknown_name(stem, names)}\n  Nothing was loaded."
            )
        if value.dim() != 2 or not value.numel():
            raise KeyMismatchError(
                f"{source}: {key} has the shape {list(value.shape)}.\n  Nothing was loaded."
            )
        if not value.isfinite().all():
            raise NonFiniteError(f"{source}: {key} holds NaN or infinity.")
        found.setdefault(paths[stem], {})[role] = value
    return _install(model, root, found, names, architecture, alpha, source, name, trainable, metadata)


def _install(
    model: nn.Module, root: nn.Module, found: dict[str, dict[str, Tensor]], names: dict[str, str], architecture: Any, alpha: float,
    source: str, name: str, trainable: bool, metadata: dict[str, Any],
) -> LoadReport:  # fmt: skip
    per_layer: dict[str, dict[str, Any]] = {}
    wanted: dict[str, Tensor] = {}
    for path, parts in found.items():
        if parts.keys() != {"lora_a", "lora_b"}:
            raise KeyMismatchError(
                f"{source}: {path} has {', '.join(sorted(parts))} only; a factor is missing."
            )
        A, B = parts["lora_a"], parts["lora_b"]
        A = A.t() if names[path] == "token_embd" else A
        heads = heads_of(root, names[path]) if architecture.permuted else None
        if heads is not None and B.shape[0] % (2 * heads):
            raise KeyMismatchError(
                f"{source}: {path} has {B.shape[0]} rows, for {heads} heads.\n  Nothing was loaded."
            )
        wanted |= {f"{path}.A": A, f"{path}.B": B if heads is None else halves(B, heads)}
        r = B.shape[1]
        per_layer[f"={path}"] = {"r": r, "alpha": alpha if alpha else float(r)}  # none is a scale of one
    if not per_layer:
        raise FormatError(f"{source} holds no tensor.")
    how = {
        "method": "lora",
        "targets": list(per_layer),
        "per_layer": per_layer,
        **next(iter(per_layer.values())),
    }
    numbers = sum(t.numel() for t in wanted.values())
    return install(
        model, name, how, lambda _: wanted, source=source, numbers=numbers, settings=metadata, trainable=trainable
    )  # fmt: skip
