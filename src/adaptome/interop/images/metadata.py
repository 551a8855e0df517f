"""What a file's metadata tells: PEFT's alphas as diffusers stores them, and what trainers and user interfaces read of a network and its model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from adaptome.core.errors import FormatError
from adaptome.interop.formats import base_of
from adaptome.interop.images.names import Component, components, is_xl
from adaptome.interop.peft_reading import pattern

#: under which diffusers stores PEFT's configuration
CONFIG = "lora_adapter_metadata"

_PLAIN = re.compile(r"[\w.\\^$]+")


def alphas(root: nn.Module, metadata: dict[str, str], source: str) -> Callable[[str, int], float]:
    """What alpha a layer of a rank has whose file holds none: the rank, unless diffusers stored PEFT's configuration."""
    if CONFIG not in metadata:
        return lambda path, r: float(r)
    try:
        config = json.loads(metadata[CONFIG])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source}: {CONFIG} is not whole JSON ({error}).") from error
    parts = components(root)
    owns: dict[str, dict[str, Any]] = {}
    for component in parts:
        prefixes = (f"{component.name}.", "") if component.alone else (f"{component.name}.",)
        own: dict[str, Any] = {}
        for prefix in prefixes[::-1]:
            own |= {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)} if isinstance(config, dict) else {}  # fmt: skip
        owns[component.prefix] = own
    for own in owns.values():
        _check_config(own, source)

    def alpha(path: str, r: int) -> float:
        prefix = next(p.prefix for p in parts if path.startswith(p.prefix))
        own = owns[prefix]
        if "lora_alpha" not in own:
            return float(r)
        value = float(pattern(own.get("alpha_pattern") or {}, path.removeprefix(prefix), own["lora_alpha"]))
        return value * r**0.5 if own.get("use_rslora") else value

    return alpha


def _check_config(own: dict[str, Any], source: str) -> None:
    patterns = own.get("alpha_pattern") or {}
    numbers = [own.get("lora_alpha", 1)]
    holds = isinstance(patterns, dict) and all(isinstance(k, str) and _PLAIN.fullmatch(k) for k in patterns)
    if holds:
        numbers += patterns.values()
        try:
            for key in patterns:
                re.compile(key)
        except re.error:
            holds = False
    if not holds or not all(type(v) in (int, float) and abs(v) < 1e9 for v in numbers):
        raise FormatError(f"{source}: alpha in {CONFIG} is not what diffusers writes there.")


# -- writing -------------------------------------------------------------------------------------------------------


def described(root: nn.Module, algorithm: str, rank: int) -> dict[str, str]:
    """The `ss_` and `modelspec.` entries of a file in kohya's keys; what is not known of the base is left out."""
    own = algorithm in ("lora", "dora")
    arguments: dict[str, Any] = {} if algorithm == "lora" else {"algo": "locon" if own else algorithm}
    if algorithm == "dora":
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    made = {
        "ss_network_module": "networks.lora" if algorithm == "lora" else "lycoris.kohya", "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)), "ss_network_args": json.dumps(arguments),
    }  # fmt: skip
    for component in components(root):
        if (known := _known(component)) is not None:
            version, architecture = known
            made |= {
                "ss_base_model_version": version, "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": f"{architecture}/lora",
                "modelspec.implementation": "diffusers",
            }  # fmt: skip
        if (base := base_of(component.model)) and not component.is_text:
            made["ss_sd_model_name"] = str(base)
    return made


def _known(component: Component) -> tuple[str, str] | None:
    """The model's family, as kohya and the model specification call it."""
    config: Any = getattr(component.model, "config", None)
    kind = {cls.__name__ for cls in type(component.model).__mro__}
    if "FluxTransformer2DModel" in kind:
        return "flux1", "flux-1-dev" if config.get("guidance_embeds") else "flux-1-schnell"
    if "SD3Transformer2DModel" in kind:
        return "sd3", "stable-diffusion-3"
    if component.name != "unet" or config is None:
        return None
    if is_xl(component.model):
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    width = config.get("cross_attention_dim")
    known = {768: ("sd_v1", "stable-diffusion-v1"), 1024: ("sd_v2", "stable-diffusion-v2")}
    return known.get(width) if isinstance(width, int) else None
