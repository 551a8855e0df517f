"""Reading PEFT's adapter folders; see `adaptome.interop.peft`."""

from __future__ import annotations

import os
import re
from typing import Any

from torch import Tensor, nn

from adaptome.core.checkpoint import LoadReport, fill, register_reader
from adaptome.core.errors import (
    FormatError,
    KeyMismatchError,
)
from adaptome.core.state import Attachment, root_of
from adaptome.interop.installing import install, reshaped
from adaptome.interop.peft_folder import check_settings, read_folder
from adaptome.interop.peft_names import CONFIG, PREFIX, has_form
from adaptome.interop.peft_parameters import host_at, parameter_of, unstacked
from adaptome.interop.peft_products import KEYS, KNOWN, same_in_peft
from adaptome.interop.peft_prompts import KNOWN as PROMPT_SETTINGS
from adaptome.interop.peft_prompts import PROMPTS, fill_prompt, read_prompt
from adaptome.interop.peft_random import TYPES

#: settings of PEFT's LoRA that may have any value without changing the numbers of a loaded adapter
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
    "eva_config", "runtime_config",
} | KNOWN  # fmt: skip
_MUTATES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@register_reader("peft", lambda path: (path / CONFIG).is_file())
def load_peft(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, trainable: bool = False
) -> LoadReport:
    """Put a PEFT folder's adapter on a model.

    Raises:
        CheckpointError: a subclass for each fault; the model is then as it was.
    """
    config, tensors = read_folder(folder)
    kind = config.get("peft_type")
    check_settings(config, str(folder))
    if kind not in _readers():
        raise FormatError(
            f"{folder} is a PEFT adapter of type {kind!r}; read are {', '.join(_readers())}.\n  Convert it with PEFT's convert_to_lora, or merge it there."
        )
    known = _HARMLESS | (
        TYPES[kind].known if kind in TYPES else PROMPT_SETTINGS if kind in PROMPTS.values() else set()
    )
    unknown = {k: v for k, v in config.items() if k not in known and v not in (None, False, {}, [])}
    if unknown.keys() - {"megatron_config"}:
        raise FormatError(
            f"{folder} uses {unknown}, which would change the numbers and is not read here.\n  Merge it with PEFT instead."
        )
    how, wanted = _readers()[kind](model, config, tensors, str(folder))

    def put(attachment: Attachment) -> dict[str, Tensor]:
        for path, adapter in attachment.adapters.items():
            if not (has_form(adapter.host) and same_in_peft(adapter)):
                raise FormatError(
                    f"{folder}: PEFT computes something else than a weight update on {path} ({adapter.host!r}); it is not read."
                )
        return _wanted(model, attachment, config, tensors, wanted)

    base = config.get("base_model_name_or_path")
    source = f"{folder}, trained on {base}" if isinstance(base, str) and base else str(folder)
    numbers = sum(t.numel() for t in tensors.values())
    return install(
        model, name, how, put, source=source, numbers=numbers, settings=config, trainable=trainable
    )


def put_tensors(
    model: nn.Module, attachment: Attachment, config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Set the tensors of an attached adapter from PEFT's.

    Args:
        model: with the adapter.
        attachment: of the adapter.
        config: PEFT's settings, which it was attached by.
        tensors: by PEFT's keys, as its files have them.

    Raises:
        CheckpointError: a subclass for each fault; nothing is set then.
    """
    own = {k.removeprefix(PREFIX): v for k, v in tensors.items()}
    _, wanted = _readers()[str(config["peft_type"])](model, config, own, "the state dict")
    wanted = _wanted(model, attachment, config, own, wanted)
    fill(attachment, reshaped(attachment, wanted), "the state dict")


def _readers() -> dict[str, Any]:
    """PEFT's type -> what makes of its settings and tensors ours."""
    return {
        "LORA": _read_lora,
        **dict.fromkeys(TYPES, _read_type),
        **dict.fromkeys([name.upper() for name in KEYS], _read_product),
        **dict.fromkeys(PROMPTS.values(), read_prompt),
    }


def _wanted(
    model: nn.Module,
    attachment: Attachment,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    wanted: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The attached adapter's tensors, with those that only it tells."""
    kind = config["peft_type"]
    if kind in TYPES:
        return wanted | TYPES[kind].finish(attachment, config, tensors)
    if kind in PROMPTS.values():
        return wanted | fill_prompt(model, attachment, tensors)
    return wanted


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


def _check_dimensions(found: dict[str, dict[str, Tensor]], least: dict[str, int], folder: str) -> None:
    """Raise KeyMismatchError for a tensor that has too few dimensions to be what its name says."""
    for path, parts in found.items():
        for role, value in parts.items():
            if value.dim() < least.get(role, 1) or not value.numel():
                raise KeyMismatchError(
                    f"{folder}: {role} of {path} has the shape {list(value.shape)}. Nothing was loaded."
                )


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
    _check_dimensions(found, {"A": 2, "B": 2, "m": 1}, folder)
    dora, rslora = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    per_layer: dict[str, dict[str, Any]] = {}
    found, parameters = _by_parameter(model, config, found)
    for path, parts in found.items():
        if not {"A", "B"} <= parts.keys() or (dora and "m" not in parts):
            raise KeyMismatchError(f"{folder}: {path} has {sorted(parts)} only; a factor is missing.")
        r = parts["A"].shape[-2 if path in parameters else 0]
        alpha = pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", 8))
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


def _by_parameter(
    model: nn.Module, config: dict[str, Any], found: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """The factors of parameters by name under their names and in our shapes, those of layers as they are; and the parameters' names."""
    targets = config.get("target_parameters") or []
    modules = dict(root_of(model).named_modules())
    named: dict[str, dict[str, Tensor]] = {}
    parameters: set[str] = set()
    for path, parts in found.items():
        name = parameter_of(path, targets, modules)
        if name is not None and {"A", "B"} <= parts.keys():
            parts = dict(zip("AB", unstacked(host_at(name, modules), parts["A"], parts["B"]), strict=True))
            parameters.add(name)
        named[name or path] = parts
    return named, parameters


def _read_type(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Types that are one method each, see `peft_types`."""
    form = TYPES[config["peft_type"]]
    names = {f".{theirs}": ours for ours, theirs in form.keys.items()}
    own = {k: v for k, v in tensors.items() if k not in form.shared}
    found, heads = _split(own, names, folder, list(config.get("modules_to_save") or []))
    _check_dimensions(found, form.dimensions, folder)
    layers = dict(root_of(model).named_modules())
    per_layer: dict[str, dict[str, Any]] = {}
    wanted: dict[str, Tensor] = dict(heads)
    for path, parts in found.items():
        if missing := form.needed(parts):
            raise KeyMismatchError(
                f"{folder}: {path} has {sorted(parts)} only; {', '.join(missing)} is missing."
            )
        if settings := form.settings(config, path, parts):
            per_layer[f"={path}"] = settings
        wanted |= {f"{path}.{k}": v for k, v in form.ours(config, parts, layers.get(path)).items()}
    how = {
        "method": form.method, "targets": [f"={path}" for path in found], "per_layer": per_layer,
        "train": sorted({f"={k.rpartition('.')[0]}" for k in heads}),
    }  # fmt: skip
    return form.common(list(per_layer.values())) | form.once(config) | how, wanted


def _read_product(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = str(config["peft_type"]).lower()
    names = {f".{theirs}": ours for ours, theirs in KEYS[method].items()}
    found, heads = _split(tensors, names, folder, list(config.get("modules_to_save") or []))
    ranks, alphas = (config.get(f"{kind}_pattern") or {} for kind in ("rank", "alpha"))
    per_layer = {
        f"={path}": {
            "r": pattern(ranks, path, config.get("r", 8)),
            "alpha": pattern(alphas, path, config.get("alpha", 8)),
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


def pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the path, or its end after a dot."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", path)), default)
