"""Quantised layers back in full precision, with the adapters on them: what a merge without requantising needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adaptome.core import adapter as swap
from adaptome.core import packed
from adaptome.core.adapter import Adapted, WeightAdapter
from adaptome.core.errors import HostError, StateError
from adaptome.core.hosts import host_of
from adaptome.core.state import STATE, find_root, rearrange, root_of


@torch.no_grad()
def dequantize(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> tuple[str, ...]:
    """Give every quantised linear layer its dense weight, in place: the same objects, as plain `nn.Linear`, their adapters still on them.

    A merge after it is exact up to the rounding of `dtype`. What quantising lost does not come back.

    Args:
        model: with quantised layers, adapters or not.
        dtype: of the weights.

    Returns:
        The layers' names.

    Raises:
        StateError: adapters are merged into the quantised weights.
        HostError: there is no quantised linear layer.
    """
    root = root_of(model)
    found = [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear) and packed.is_packed(module)
    ]
    if not found:
        raise HostError(f"{type(root).__name__} has no quantised linear layer.")
    if any("_unmerged" in module.__dict__ for _, module in found):
        raise StateError("adapters are merged into the quantised weights.\n  ad.unmerge(model) first.")
    _check_adapters(root, dict(found))
    for name, layer in found:
        _densify(layer, name, dtype)
    _forget_quantisation(root)
    if STATE in root.__dict__:
        rearrange(find_root(model))
    return tuple(name for name, _ in found)


def _check_adapters(root: Any, found: dict[str, Any]) -> None:
    """Raise StateError for an adapter that lives by the layers' being quantised."""
    state = root.__dict__.get(STATE)
    for attachment in state.attachments.values() if state is not None else ():
        for path, adapter in attachment.adapters.items():
            if adapter.host.layer not in found.values():
                continue
            plain = nn.Linear(adapter.host.fan_in, adapter.host.fan_out, device="meta")
            reason = attachment.method.admits(host_of(plain, path))
            if reason is not None:
                raise StateError(
                    f"{attachment.method.name} on {path} needs the layer as it is: {reason}.\n  Merge it first (requantise=True, keep=False)."
                )


def _densify(layer: Any, name: str, dtype: torch.dtype) -> None:
    weight = nn.Parameter(packed.dense(layer, dtype=torch.float32).to(dtype), requires_grad=False)
    # what its library keeps on the layer beside torch's own attributes goes with the old class
    kept = {*nn.Linear(1, 1, device="meta").__dict__, "_host", "_chain", "_overrides", "_in_thread", "_instance_forward", "_hf_hook", "_old_forward", "forward"}  # fmt: skip
    for key in set(layer.__dict__) - kept:
        del layer.__dict__[key]
    layer._parameters["weight"] = weight
    if not isinstance(layer, Adapted):
        layer.__class__ = nn.Linear
        return
    _readapt(layer, name)


def _readapt(layer: Any, name: str) -> None:
    """The adapted class over nn.Linear, through which the adapters read the dense weight."""
    host = host_of(layer, name, role=layer._host.role, index=layer._host.index)
    host.packed = False
    adapters = list(getattr(layer, swap.ATTRIBUTE).values())
    for adapter in adapters:
        adapter.host.packed = False
    layer.__dict__["_host"] = host
    changed = {p for a in adapters if isinstance(a, WeightAdapter) for p in a.changes}
    readable = changed & set(layer._parameters)
    swap.swap(layer, swap.adapted_class(nn.Linear, tuple(sorted(readable))))


def _forget_quantisation(root: Any) -> None:
    """Leave nothing by which transformers would take the model, or its saved folder, for a quantised one."""
    config: Any = getattr(root, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for mark in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):  # fmt: skip
        root.__dict__.pop(mark, None)
