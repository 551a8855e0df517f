"""The two files of a PEFT folder, read and checked as far as any type of adapter needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from adaptome.core.errors import CheckpointError, FormatError, NonFiniteError, TornFileError
from adaptome.interop.peft_names import CONFIG, PREFIX, TENSORS

_NUMBERS = (
    "r", "lora_alpha", "alpha", "lora_dropout", "vera_dropout", "n_frequency", "scaling", "random_loc_seed", "projection_prng_key", "d_initial",
    "init_r", "decompose_factor", "num_virtual_tokens", "module_dropout", "eps", "boft_dropout",
)  # fmt: skip


def check_settings(config: dict[str, Any], folder: str) -> None:
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


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
