"""PEFT's rules for which modules are meant."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from adaptome.core.errors import TargetError, nearest
from adaptome.core.hosts import host_of
from adaptome.core.state import is_ours
from adaptome.core.targets import resolve, roles


def names(wanted: Collection[str] | str, path: str) -> bool:
    """Whether a string matches the whole path as a regular expression, or one of several is it or its ending."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in wanted)


def targets_of(model: nn.Module, config: Any) -> list[str] | None:
    """The full names that a configuration means; None for the method's own.

    Raises:
        TargetError: nothing is meant.
    """
    wanted = getattr(config, "target_modules", None)
    parameters = getattr(config, "target_parameters", None)
    found = _parameters(model, parameters) if parameters else []
    if wanted is None:
        return found or None if config.kind not in _QUERY_VALUE else found or query_value(model)
    modules = [(path, m) for path, m in model.named_modules() if path and not is_ours(path)]
    heads = config.modules_to_save or []
    if wanted == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        chosen = [match.path for match in resolve(model, "all-linear") if match.module is not head]
    else:
        chosen = [path for path, _ in modules if names(wanted, path)]
    left = [
        path
        for path in chosen
        if not (config.exclude_modules and names(config.exclude_modules, path))
        and not any(part in path.split(".") for part in heads)
        and _in_layers(path, config)
    ]
    if not (left or found):
        leaves = {path.rpartition(".")[2] for path, _ in modules}
        near = nearest(next(iter(wanted)) if not isinstance(wanted, str) else wanted, leaves)
        raise TargetError(
            f"Target modules {wanted} not found in the base model {type(model).__name__}. Please check the target modules and try again."
            + (f"\n  Near names: {', '.join(near)}." if near else "")
        )
    return [*left, *found]


#: types that PEFT puts on queries and values where no target is named
_QUERY_VALUE = (
    "LORA", "ADALORA", "LOHA", "LOKR", "VERA", "FOURIERFT", "BOFT", "OFT", "C3A", "DEFT", "DELORA", "GLORA", "GRALORA", "HIRA", "HRA", "MISS", "PEANUT", "ROAD",
    "SHIRA", "WAVEFT",
)  # fmt: skip


def query_value(model: nn.Module) -> list[str] | None:
    """The maps of queries and values, which may be one with that of the keys; None where the model has none."""
    known: dict[str, Any] = dict(roles(model))
    split = [match.path for role in ("q", "v") for match in known.get(role, ())]
    return split or [match.path for match in known.get("qkv", ())] or None


def _in_layers(path: str, config: Any) -> bool:
    layers = config.layers_to_transform
    if layers is None:
        return True
    given = config.layers_pattern
    patterns = [given] if isinstance(given, str) else given
    where = "|".join(map(re.escape, patterns)) if patterns else r"[^.]*"
    match = re.match(rf".*\.?({where})\.(\d+)\.", path)
    return match is not None and int(match[2]) in ([layers] if isinstance(layers, int) else layers)


def _parameters(model: nn.Module, wanted: list[str]) -> list[str]:
    return [
        host_of(module, path, name).name
        for path, module in model.named_modules()
        if path and not is_ours(path)
        for name, value in module._parameters.items()
        if value is not None and names(wanted, f"{path}.{name}")
    ]
