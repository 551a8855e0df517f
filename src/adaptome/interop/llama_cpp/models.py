"""A merged model as one GGUF file, for the architectures whose conversion is known here in full: Llama, Mistral, Qwen2 and Qwen3.

Matrices are stored in the chosen type, vectors in float32; Q8_0 where a row is a multiple of 32, else float16. The tokenizer goes along
where llama.cpp has its kind: byte-level BPE as in GPT-2, Llama 3 and Qwen2, and SentencePiece with its model file. Any other is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptome.core.errors import MergeError, did_you_mean
from adaptome.core.files import staged_file
from adaptome.core.merging import stacks
from adaptome.core.state import adapters, find_root, refuse_sharded
from adaptome.interop.formats import base_of
from adaptome.interop.llama_cpp.adapters import finish
from adaptome.interop.llama_cpp.names import (
    Architecture,
    architecture_of,
    gguf_package,
    tensor_names,
    turned,
    unknown_name,
)
from adaptome.interop.llama_cpp.vocabulary import add_vocabulary
from adaptome.interop.merge_reports import MergedFile
from adaptome.interop.merged_tensors import Source, compare, sources

TYPES = ("f32", "f16", "bf16", "q8_0")


def save_gguf(
    model: nn.Module,
    file: str | os.PathLike[str],
    names: str | Sequence[str] | None = None,
    *,
    dtype: str = "f16",
    tokenizer: Any = None,
) -> MergedFile:
    """Write the model with adapters in its weights as a GGUF file that llama.cpp runs; the model stays as it is.

    Args:
        model: of transformers, with adapters or without.
        file: to write, its name ending in .gguf.
        names: which adapters; None for all that are active.
        dtype: of the matrices, 'f32', 'f16', 'bf16' or 'q8_0'.
        tokenizer: of transformers; None leaves the vocabulary out, and llama.cpp takes token ids only.

    Raises:
        MergeError: an architecture, a kind of positions or a tokenizer that is not known here, an adapter without a merged form.
        MissingExtraError: without the `gguf` package.
    """
    gguf = gguf_package()
    root, path = (find_root(model) if adapters(model) else model), Path(file)
    if dtype not in TYPES:
        raise MergeError(f"dtype={dtype!r} is none of {', '.join(TYPES)}.{did_you_mean(dtype, TYPES)}")
    if path.is_dir() or path.suffix.lower() != ".gguf":
        raise MergeError(f"{path}: a GGUF model is one file; give it a name that ends in .gguf.")
    refuse_sharded(root, "merging")
    architecture = architecture_of(root, "model")
    chosen, layers = stacks(root, names) if adapters(model) else ([], [])
    tensors, _ = sources(root, layers, None)
    table = tensor_names(root, architecture)
    placed = {_placed(key, source, table): source for key, source in tensors.items()}
    differences = compare(root, chosen, layers) if chosen else {}
    kinds = gguf.GGMLQuantizationType
    wanted = kinds[dtype.upper()]
    with staged_file(path) as place:
        writer = gguf.GGUFWriter(place, architecture.name, use_temp_file=True)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(str(base_of(root) or path.stem))
        writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        extra = _hyperparameters(writer, root.config, architecture, gguf)
        notes = add_vocabulary(writer, tokenizer, int(root.config.vocab_size), gguf)  # type: ignore[union-attr, arg-type]
        for name, source in placed.items():
            value = turned(root, architecture, name.rpartition(".")[0], source.value().float())
            _add(writer, name, value, wanted, gguf)
        for name, value in extra.items():
            _add(writer, name, value, kinds.F32, gguf)
        finish(writer)
    return MergedFile(str(path), "gguf", tuple(chosen), len(placed) + len(extra), path.stat().st_size, differences, None, notes)  # fmt: skip


def _placed(key: str, source: Source, table: dict[str, str]) -> str:
    if source.path not in table:
        raise MergeError(
            f"{key}: llama.cpp has no tensor for it.{unknown_name(source.path, table)}\n  Use ad.save_merged, and convert_hf_to_gguf.py on its folder."
        )
    return f"{table[source.path]}.{source.name}"


def _add(writer: Any, name: str, value: Tensor, wanted: Any, gguf: Any) -> None:
    kinds = gguf.GGMLQuantizationType
    kind = wanted if value.dim() > 1 else kinds.F32
    if kind == kinds.Q8_0 and value.shape[-1] % 32:
        kind = kinds.F16
    data: np.ndarray[Any, Any] = value.contiguous().numpy()
    if kind in (kinds.F32, kinds.F16):
        writer.add_tensor(name, data.astype(np.float32 if kind == kinds.F32 else np.float16))
        return
    writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def _hyperparameters(writer: Any, config: Any, architecture: Architecture, gguf: Any) -> dict[str, Tensor]:
    """What llama.cpp must know of the model; gives the tensors that go with its positions."""
    heads, kv = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads  # fmt: skip
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    if getattr(config, "use_sliding_window", False) or (
        config.model_type == "mistral" and config.sliding_window
    ):
        raise MergeError(
            "the model attends within a sliding window, which is not written here.\n  Use ad.save_merged, and convert_hf_to_gguf.py on its folder."
        )
    rope: dict[str, Any] = dict(
        getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    )
    theta: Any = rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
    base = float(theta)
    writer.add_rope_freq_base(base)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope, base, width)}
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            writer.add_rope_scaling_orig_ctx_len(int(original))
    elif kind != "default":
        raise MergeError(
            f"positions of the type {kind!r} are not written here.\n  Use ad.save_merged, and convert_hf_to_gguf.py on its folder."
        )
    return {}


def llama3_factors(rope: dict[str, Any], base: float, width: int) -> Tensor:
    """What Llama 3's positions divide each frequency by, `[width / 2]`: 1 for short waves, `factor` for long ones, between them smoothly."""
    low, high, factor = (float(rope[k]) for k in ("low_freq_factor", "high_freq_factor", "factor"))
    waves = 2 * torch.pi * base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    share = ((rope["original_max_position_embeddings"] / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / factor + share)).float()
