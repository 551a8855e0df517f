"""PEFT's adapter folders, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Written: LoRA for every weight method (exact where it is low-rank), and DoRA, LoHa and LoKr as what they are. For LoRA one rank and alpha = rank, with smaller ranks padded by
zeros and the scale inside B, because servers drop rank and alpha patterns. Trained heads go to `modules_to_save`.
Read: LoRA (rsLoRA, rank and alpha patterns, embeddings, convolutions, heads), DoRA, IA3, LN tuning, LoHa and LoKr. A
setting that would change the numbers and that we do not know is refused, never dropped.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.checkpoint import LoadReport, fill
from adaptome.core.errors import (
    CheckpointError,
    FormatError,
    KeyMismatchError,
    MergeError,
    NonFiniteError,
    TargetError,
    TornFileError,
    did_you_mean,
)
from adaptome.core.files import atomic_folder
from adaptome.core.hosts import Host
from adaptome.core.model import detach, set_trainable
from adaptome.core.state import Attachment, attachment_of, find_root, is_ours, tensors_of
from adaptome.interop.lora_factors import Factors, lora_factors
from adaptome.interop.peft_names import check_heads, target_modules
from adaptome.interop.peft_products import KEYS, KNOWN, product_config, product_tensors, same_in_peft

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
Format = Literal["peft-lora", "peft-dora", "peft-loha", "peft-lokr"]
FORMATS = get_args(Format)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where.
        format: of what.
        rank: of every layer, smaller ones padded; of LoHa and LoKr the largest.
        errors: target -> relative error of its update; 0 where exact.
    """

    folder: str
    format: str
    rank: int
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**vars(self), "worst": self.worst}

    def __str__(self) -> str:
        exact = "exact" if self.worst == 0 else f"largest relative error of an update {self.worst:.2e}"
        return (
            f"wrote {len(self.errors)} updates as {self.format}, rank {self.rank}, to {self.folder}: {exact}"
        )


def export(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    format: Format = "peft-lora",
    rank: int | None = None,
    tolerance: float | None = None,
    task_type: str | None = None,
) -> ExportReport:
    """Write an adapter as a PEFT folder.

    Args:
        model: with the adapter.
        folder: made or replaced.
        name: of the adapter.
        format: 'peft-lora' for any weight method, 'peft-dora', 'peft-loha' and 'peft-lokr' for DoRA, LoHa and LoKr as they are.
        rank: truncate updates of a higher rank to this one; a method that is not low-rank needs it.
        tolerance: refuse when an update's relative error is above it.
        task_type: PEFT's ('CAUSAL_LM', 'SEQ_CLS', ...), for `AutoPeftModel`.

    Raises:
        MergeError: the method has no such form, a rank is needed, a layer has no place in the format, or the error is too large.
        CheckpointError: the folder holds something else.
    """
    if format not in FORMATS:
        raise FormatError(
            f"no export format is called {format!r}.{did_you_mean(format, FORMATS)} There are {', '.join(FORMATS)}."
        )
    attachment = attachment_of(model, name)
    if not attachment.adapters:
        raise MergeError(
            f"{name!r} is {attachment.method.name}, which changes no weight but the head's: {format} has no form of it.\n  Merge into the model instead."
        )
    for path, adapter in attachment.adapters.items():
        if not _has_form(adapter.host):
            raise MergeError(
                f"{path} is a {adapter.host!r}: {format} has no exact form of it.\n  Merge into the model instead, or leave it out of the targets."
            )
    if format != "peft-lora" and attachment.method.name != format.removeprefix("peft-"):
        raise MergeError(
            f"{format} needs {format.removeprefix('peft-')}; {name!r} is {attachment.method.name}. Use peft-lora."
        )
    own: dict[str, Any] = {}
    if format == "peft-dora":
        tensors, r, errors = _dora_tensors(attachment)
    elif format != "peft-lora":
        tensors = {PREFIX + key: value for key, value in product_tensors(attachment).items()}
        own, errors = product_config(attachment), dict.fromkeys(attachment.adapters, 0.0)
        r = max(own["rank_pattern"].values(), default=own["r"])
    else:
        factors = lora_factors(attachment, rank)
        errors = {path: f.error for path, f in factors.items()}
        if tolerance is not None and max(errors.values()) > tolerance:
            worst = max(errors, key=lambda k: errors[k])
            raise MergeError(
                f"rank {rank} leaves a relative error of {errors[worst]:.2e} on {worst}, above {tolerance:.0e}.\n  Raise the rank or the tolerance."
            )
        r = max(f.A.shape[-2] for f in factors.values())
        tensors = _lora_tensors(attachment, factors, r)
    for path, head in attachment.heads.items():
        if head.rows is not None:
            raise MergeError(
                f"{path}: {format} has no form for trained rows of a layer.\n  Merge into the model instead."
            )
        tensors |= {f"{PREFIX}{path}.{k}": v.detach().cpu().clone() for k, v in head.named_parameters()}
    _write(folder, _config(model, attachment, r, format, task_type, own), tensors)
    return ExportReport(str(folder), format, r, errors)


def _has_form(host: Host) -> bool:
    """Whether PEFT computes the same on this layer: its convolutions know neither groups, dilation nor padding modes."""
    conv = host.layer
    plain = host.kind != "conv" or (
        conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
    )
    return plain and host.kind not in ("experts", "parameter")


def _lora_tensors(attachment: Attachment, factors: dict[str, Factors], r: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, f in factors.items():
        host = attachment.adapters[path].host
        A = torch.cat([f.A, f.A.new_zeros(r - f.A.shape[0], f.A.shape[1])])
        B = torch.cat([f.B, f.B.new_zeros(f.B.shape[0], r - f.B.shape[1])], 1)
        if host.kind == "embedding":
            tensors |= {f"{PREFIX}{path}.lora_embedding_A": A, f"{PREFIX}{path}.lora_embedding_B": B}
            continue
        if host.kind == "conv":
            kernel = host.stored("weight").shape[1:]
            A, B = A.view(r, *kernel), B.view(*B.shape, *[1] * (len(kernel) - 1))
        tensors |= {f"{PREFIX}{path}.lora_A.weight": A, f"{PREFIX}{path}.lora_B.weight": B}
    return tensors


def _dora_tensors(attachment: Attachment) -> tuple[dict[str, Tensor], int, dict[str, float]]:
    tensors: dict[str, Tensor] = {}
    adapters: dict[str, Any] = dict(attachment.adapters)
    if any(a.host.kind != "linear" for a in adapters.values()):
        raise MergeError("peft-dora is written for linear layers only. Merge into the model instead.")
    r = max(a.A.shape[0] for a in adapters.values())
    for path, a in adapters.items():
        A, B = a.A.detach().float().cpu(), a.B.detach().float().cpu() * a.scale
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.cat([A, A.new_zeros(r - A.shape[0], A.shape[1])])
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.cat([B, B.new_zeros(B.shape[0], r - B.shape[1])], 1)
        tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = a.m.detach().float().cpu().clone()
    return tensors, r, dict.fromkeys(adapters, 0.0)


def _config(
    model: nn.Module,
    attachment: Attachment,
    r: int,
    format: Format,
    task_type: str | None,
    own: dict[str, Any],
) -> dict[str, Any]:
    root = find_root(model)
    config = getattr(root, "config", None)
    check_heads(attachment.heads, attachment.adapters)
    targets = target_modules(attachment.adapters, [n for n, _ in root.named_modules() if not is_ours(n)])
    transposed = [type(a.host).__name__ == "Conv1DHost" for a in attachment.adapters.values()]
    lora = {
        "peft_type": "LORA", "r": r, "lora_alpha": r, "lora_dropout": 0.0, "bias": "none", "init_lora_weights": True,
        "fan_in_fan_out": all(transposed), "use_rslora": False, "use_dora": format == "peft-dora",
        "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    return (own or lora) | {
        "inference_mode": True, "target_modules": targets, "modules_to_save": sorted(attachment.heads) or None,
        "task_type": task_type, "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
        "revision": getattr(config, "_commit_hash", None),
    }  # fmt: skip


def _write(folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{len(bad)} tensors hold NaN or infinity ({bad[0]}); nothing was written.")
    data = dump_tensors({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    with atomic_folder(folder, only=(TENSORS, CONFIG, "README.md")) as staging:
        (staging / TENSORS).write_bytes(data)
        (staging / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# -- reading ---------------------------------------------------------------------------------------------------------

#: settings of PEFT's LoRA that may have any value without changing the numbers of a loaded adapter
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora",
    "eva_config", "feedforward_modules", "init_ia3_weights", "runtime_config",
} | KNOWN  # fmt: skip
_MUTATES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
            if not (_has_form(adapter.host) and same_in_peft(adapter)):
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
