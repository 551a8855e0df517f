"""Reading PEFT's adapter folders: LoRA, DoRA, IA3, LN tuning, LoHa and LoKr; see `adaptome.interop.peft`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.checkpoint import LoadReport, fill, register_reader
from adaptome.core.errors import (
    CheckpointError,
    FormatError,
    KeyMismatchError,
    NonFiniteError,
    TargetError,
    TornFileError,
)
from adaptome.core.model import detach, set_trainable
from adaptome.core.state import Attachment, attachment_of, tensors_of
from adaptome.interop.peft_names import CONFIG, PREFIX, TENSORS, has_form
from adaptome.interop.peft_products import KEYS, KNOWN, same_in_peft

#: settings of PEFT's LoRA that may have any value without changing the numbers of a loaded adapter
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora",
    "eva_config", "feedforward_modules", "init_ia3_weights", "runtime_config",
} | KNOWN  # fmt: skip
_MUTATES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@register_reader(CONFIG)
def load_peft(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, trainable: bool = False
) -> LoadReport:
    """Put a PEFT folder's adapter on a model.

    Raises:
        CheckpointError: a subclass for each fault; the model is then as it was.
    """
    config, tensors = _read(folder)
    kind = config.get("peft_type")
    readers = {"LORA": _read_lora, "IA3": _read_ia3, "LN_TUNING": _read_norms} | {
        name.upper(): _read_product for name in KEYS
    }
    if kind not in readers:
        raise FormatError(
            f"{folder} is a PEFT adapter of type {kind!r}; read are {', '.join(readers)}.\n  Convert it with PEFT's convert_to_lora, or merge it there."
        )
    unknown = {k: v for k, v in config.items() if k not in _HARMLESS and v not in (None, False, {}, [])}
    if unknown.keys() - {"megatron_config"}:
        raise FormatError(
            f"{folder} uses {unknown}, which would change the numbers and is not read here.\n  Merge it with PEFT instead."
        )
    how, wanted = readers[kind](model, config, tensors, str(folder))
    try:
        attach(model, name=name, **how)
    except TargetError as error:
        raise KeyMismatchError(
            f"{folder}, trained on {config.get('base_model_name_or_path')}: {error}"
        ) from error
    try:
        for path, adapter in attachment_of(model, name).adapters.items():
            if not (has_form(adapter.host) and same_in_peft(adapter)):
                raise FormatError(
                    f"{folder}: PEFT computes something else than a weight update on {path} ({adapter.host!r}); it is not read."
                )
        fill(attachment_of(model, name), _reshaped(attachment_of(model, name), wanted), str(folder))
    except CheckpointError:
        detach(model, name)
        raise
    set_trainable(model, name, trainable)
    return LoadReport(
        name,
        how["method"],
        len(wanted),
        sum(t.numel() for t in wanted.values()),
        "module names and shapes (PEFT stores no more)",
        config,
    )


def _read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((Path(folder) / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TornFileError(f"{Path(folder) / CONFIG} is not whole JSON ({error}).") from error
    if not isinstance(config, dict):
        raise FormatError(f"{Path(folder) / CONFIG} is not a PEFT configuration.")
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {TENSORS}; a pickled adapter_model.bin is never read.\n  Save it again with PEFT's safe_serialization=True."
        )
    try:
        tensors = load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise TornFileError(f"{path} is not a whole safetensors file ({error}).") from error
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{path}: {len(bad)} tensors hold NaN or infinity, first {bad[0]}.")
    return config, {k.removeprefix(PREFIX): v for k, v in tensors.items()}


_SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "m",
}


def _split(
    tensors: dict[str, Tensor], suffixes: dict[str, str], folder: str, heads: list[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors by target and role, and those of heads; KeyMismatchError for any other."""
    found: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        suffix = next((s for s in suffixes if key.endswith(s)), None)
        if suffix is not None:
            found.setdefault(key.removesuffix(suffix), {})[suffixes[suffix]] = value
        elif any(part in heads for part in _tails(key)):
            whole[key] = value
        else:
            raise KeyMismatchError(
                f"{folder}: the tensor {key!r} is none that its configuration explains.\n  Nothing was loaded."
            )
    return found, whole


def _tails(key: str) -> list[str]:
    parts = key.split(".")[:-1]
    return [".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]


def _read_lora(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    init = str(config.get("init_lora_weights", True)).lower()
    if any(init.startswith(k) for k in _MUTATES_BASE):
        raise FormatError(
            f"{folder} was initialised with {init}, which changed the base's weights: its numbers are relative to that base.\n  Save it in PEFT with path_initial_model_for_weight_conversion."
        )
    if config.get("bias", "none") != "none":
        raise FormatError(
            f"{folder} trained biases (bias={config['bias']!r}), which is not read here.\n  Merge it with PEFT instead."
        )
    found, heads = _split(tensors, _SUFFIXES, folder, list(config.get("modules_to_save") or []))
    dora, rslora = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    per_layer: dict[str, dict[str, Any]] = {}
    for path, parts in found.items():
        if not {"A", "B"} <= parts.keys() or (dora and "m" not in parts):
            raise KeyMismatchError(f"{folder}: {path} has {sorted(parts)} only; a factor is missing.")
        r = parts["A"].shape[0]
        alpha = _pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", 8))
        per_layer[f"={path}"] = {"r": r, "alpha": alpha * r**0.5 if dora and rslora else alpha}
    how: dict[str, Any] = {
        "method": "dora" if dora else "lora",
        "targets": list(per_layer),
        "per_layer": per_layer,
        "dropout": config.get("lora_dropout", 0.0),
    }
    how |= {} if dora else {"rslora": rslora}
    how |= {"r": config.get("r", 8), "alpha": config.get("lora_alpha", 8)}
    how["train"] = sorted({f"={key.rpartition('.')[0]}" for key in heads})
    return how, {f"{p}.{k}": v for p, parts in found.items() for k, v in parts.items()} | heads


def _read_ia3(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    found, heads = _split(tensors, {".ia3_l": "l"}, folder, list(config.get("modules_to_save") or []))
    on_input = {p: parts["l"].shape[0] == 1 and parts["l"].dim() > 1 for p, parts in found.items()}
    per_layer = {f"={p}": {"side": "input" if inner else "output"} for p, inner in on_input.items()}
    how = {
        "method": "ia3",
        "targets": list(per_layer),
        "per_layer": per_layer,
        "train": sorted({f"={k.rpartition('.')[0]}" for k in heads}),
    }
    return how, {f"{p}.l": parts["l"].flatten() for p, parts in found.items()} | heads


def _read_norms(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    mark = ".ln_tuning_layers."
    own = {k.replace(mark, "."): v for k, v in tensors.items() if mark in k}
    base = dict(model.named_parameters())
    missing = [k for k in own if k not in base]
    if missing or len(own) != len(tensors):
        raise KeyMismatchError(
            f"{folder}: {missing or [k for k in tensors if mark not in k]} fit nothing in this {type(model).__name__}."
        )
    how = {
        "method": "norm-tuning",
        "targets": sorted({f"={k.rpartition('.')[0]}" for k in own}),
        "bias": any(k.endswith(".bias") for k in own),
    }
    return how, {k: v - base[k].detach().to(v) for k, v in own.items()}


def _read_product(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = str(config["peft_type"]).lower()
    names = {f".{theirs}": ours for ours, theirs in KEYS[method].items()}
    found, heads = _split(tensors, names, folder, list(config.get("modules_to_save") or []))
    ranks, alphas = (config.get(f"{kind}_pattern") or {} for kind in ("rank", "alpha"))
    per_layer = {
        f"={path}": {
            "r": _pattern(ranks, path, config.get("r", 8)),
            "alpha": _pattern(alphas, path, config.get("alpha", 8)),
        }
        for path in found
    }
    how: dict[str, Any] = {
        "method": method,
        "targets": list(per_layer),
        "per_layer": per_layer,
        "train": sorted({f"={key.rpartition('.')[0]}" for key in heads}),
    }
    if method == "lokr":
        how |= {
            "factor": config.get("decompose_factor", -1),
            "decompose_both": bool(config.get("decompose_both")),
        }
    return how, {f"{p}.{k}": v for p, parts in found.items() for k, v in parts.items()} | heads


def _pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the path, or its end after a dot."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", path)), default)


def _reshaped(attachment: Attachment, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolution kernels as the factors are stored here, [r, in * k] and [out, r]."""
    wanted = tensors_of(attachment)
    fits = dict(tensors)
    for key, place in wanted.items():
        value = fits.get(key)
        if (
            value is not None
            and value.shape != place.shape
            and value.dim() > 2
            and value.numel() == place.numel()
        ):
            fits[key] = value.reshape(place.shape)
    return fits
