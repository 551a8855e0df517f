"""Whether vLLM would serve a folder: the rules by which it reads one, applied without it.

As its loader has them (`vllm/lora/peft_helper.py`, `lora_model.py`): r, lora_alpha and target_modules are there; no DoRA, no modules_to_save, no biases; nothing
but factors A and B, of a rank that is served. What it reads past in silence is refused here too: rank and alpha patterns, and factors of another rank than r, for
it scales all layers by the one lora_alpha / r.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptome.core.errors import FormatError
from adaptome.interop.convert import SERVED_RANKS
from adaptome.interop.peft_folder import read_folder

_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<which>[AB])\.weight")
_REQUIRED = ("r", "lora_alpha", "target_modules")


@dataclass(frozen=True)
class Served:
    """What a folder asks of vLLM.

    Attributes:
        folder: the adapter's.
        max_lora_rank: the least that it must be started with.
        layers: how many have factors.
        base: the base model that is to be served, where the folder tells.
    """

    folder: str
    max_lora_rank: int
    layers: int
    base: str | None

    def __str__(self) -> str:
        """The command."""
        return f"vllm serve {self.base or 'BASE'} --enable-lora --max-lora-rank {self.max_lora_rank} --lora-modules mine={self.folder}"


def check(folder: str | os.PathLike[str]) -> Served:
    """Read a PEFT folder as vLLM would.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.

    Raises:
        FormatError: vLLM refuses it, or would compute something else; every reason is told.
        CheckpointError: a subclass where it is no whole folder.
    """
    config, tensors = read_folder(folder)
    wrong = [*_wrong_settings(config), *_wrong_tensors(config, tensors)]
    if wrong:
        raise FormatError(
            f"vLLM does not serve {folder}: {'; '.join(wrong)}.\n  Write it anew: ad.convert(model, folder), which pads ranks and takes patterns and DoRA into the factors."
        )
    rank = next(r for r in SERVED_RANKS if r >= config["r"])
    return Served(str(Path(folder)), rank, len(tensors) // 2, config.get("base_model_name_or_path") or None)


def _wrong_settings(config: dict[str, Any]) -> list[str]:
    wrong = [f"adapter_config.json has no {name}" for name in _REQUIRED if not config.get(name)]
    if config.get("peft_type", "LORA") != "LORA":
        wrong.append(f"it is of type {config['peft_type']}, and LORA alone is served")
    if isinstance(config.get("r"), int) and config["r"] > SERVED_RANKS[-1]:
        wrong.append(f"r = {config['r']} is above {SERVED_RANKS[-1]}, the largest rank that is served")
    if config.get("bias", "none") != "none":
        wrong.append(f"bias = {config['bias']!r}: biases are not served")
    wrong += [
        f"{name} is set"
        for name in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
        if config.get(name)
    ]
    return wrong


def _wrong_tensors(config: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    factors: dict[str, dict[str, int]] = {}
    foreign = []
    for key, value in tensors.items():
        match = _FACTOR.fullmatch(key)
        if match is None or value.dim() != 2:
            foreign.append(key)
            continue
        factors.setdefault(match["path"], {})[match["which"]] = value.shape[0 if match["which"] == "A" else 1]
    wrong = (
        [f"{len(foreign)} tensors are no factors of a linear layer, first {foreign[0]}"] if foreign else []
    )
    single = [path for path, pair in factors.items() if len(pair) != 2]
    if single:
        wrong.append(f"{single[0]} has one factor alone")
    ranks = sorted({rank for pair in factors.values() for rank in pair.values()} - {config.get("r")})
    if ranks:
        wrong.append(f"factors have rank {', '.join(map(str, ranks))}, and r = {config.get('r')}")
    return wrong if factors else [*wrong, "it holds no factors"]
