"""Reading PEFT's adapter folders; see `adaptome.interop.peft`."""

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

from adaptome.core.attaching import attach, plan
from adaptome.core.checkpoint import LoadReport, fill, register_reader
from adaptome.core.errors import (
    CheckpointError,
    FormatError,
    HostError,
    KeyMismatchError,
    MethodError,
    NonFiniteError,
    StateError,
    TargetError,
    TornFileError,
)
from adaptome.core.model import detach, set_trainable
from adaptome.core.state import Attachment, adapters, attachment_of, root_of, tensors_of
from adaptome.interop.peft_names import CONFIG, PREFIX, TENSORS, has_form
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


@register_reader(CONFIG)
def load_peft(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, trainable: bool = False
) -> LoadReport:
    """Put a PEFT folder's adapter on a model.

    Raises:
        CheckpointError: a subclass for each fault; the model is then as it was.
    """
    config, tensors = read_peft(folder)
    kind = config.get("peft_type")
    _check_settings(config, str(folder))
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
    if name in adapters(model):
        raise StateError(
            f"an adapter called {name!r} is attached already.\n  Load it under another name, or ad.detach it first."
        )
    numbers = sum(t.numel() for t in tensors.values())
    try:
        asked = plan(model, **how).trainable
        if (
            asked > 4 * numbers + 2**20
        ):  # before anything is built: settings may ask for more than fits in memory
            raise KeyMismatchError(
                f"{folder}: its settings ask for {asked:,} numbers and it holds {numbers:,}. Nothing was loaded."
            )
        attach(model, name=name, **how)
    except TargetError as error:
        raise KeyMismatchError(
            f"{folder}, trained on {config.get('base_model_name_or_path')}: {error}"
        ) from error
    except (MethodError, HostError) as error:
        raise FormatError(f"{folder}: {error}") from error
    try:
        attachment = attachment_of(model, name)
        for path, adapter in attachment.adapters.items():
            if not (has_form(adapter.host) and same_in_peft(adapter)):
                raise FormatError(
                    f"{folder}: PEFT computes something else than a weight update on {path} ({adapter.host!r}); it is not read."
                )
        _put(model, attachment, config, tensors, wanted, str(folder))
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
    _put(model, attachment, config, own, wanted, "the state dict")


def _readers() -> dict[str, Any]:
    """PEFT's type -> what makes of its settings and tensors ours."""
    return {
        "LORA": _read_lora,
        **dict.fromkeys(TYPES, _read_type),
        **dict.fromkeys([name.upper() for name in KEYS], _read_product),
        **dict.fromkeys(PROMPTS.values(), read_prompt),
    }


def _put(
    model: nn.Module,
    attachment: Attachment,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    wanted: dict[str, Tensor],
    source: str,
) -> None:
    kind = config["peft_type"]
    if kind in TYPES:
        wanted |= TYPES[kind].finish(attachment, config, tensors)
    elif kind in PROMPTS.values():
        wanted |= fill_prompt(model, attachment, tensors)
    fill(attachment, _reshaped(attachment, wanted), source)


_NUMBERS = (
    "r", "lora_alpha", "alpha", "lora_dropout", "vera_dropout", "n_frequency", "scaling", "random_loc_seed", "projection_prng_key", "d_initial",
    "init_r", "decompose_factor", "num_virtual_tokens", "module_dropout", "eps", "boft_dropout",
)  # fmt: skip


def _check_settings(config: dict[str, Any], folder: str) -> None:
    """Raise FormatError for a setting that is read and is not of the type that PEFT writes."""

    def strings(value: Any) -> bool:
        return value is None or (isinstance(value, list) and all(isinstance(v, str) and v for v in value))

    def patterns(value: Any) -> bool:
        try:
            return value is None or (isinstance(value, dict) and all(re.compile(k) for k in value))
        except re.error:
            return False

    def number(value: Any) -> bool:
        return value is None or (type(value) in (int, float) and abs(value) < 1e9)

    checks = {"peft_type": isinstance(config.get("peft_type"), str)}
    checks |= {key: number(config.get(key)) for key in _NUMBERS}
    checks |= {key: strings(config.get(key)) for key in ("modules_to_save", "target_parameters")}
    checks |= {
        key: patterns(config.get(key)) for key in ("rank_pattern", "alpha_pattern", "n_frequency_pattern")
    }
    if config.get("peft_type") != "ADALORA":  # there they are masks
        checks |= {
            key: checks[key] and all(v is not None and number(v) for v in (config.get(key) or {}).values())
            for key in ("rank_pattern", "alpha_pattern")
        }
    wrong = [key for key, holds in checks.items() if not holds]
    if wrong:
        raise FormatError(
            f"{folder}: {', '.join(wrong)} is not what PEFT writes there ({config.get(wrong[0])!r})."
        )


def read_peft(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((Path(folder) / CONFIG).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG}.") from error
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
