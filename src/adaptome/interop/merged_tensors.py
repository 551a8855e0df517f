"""The tensors of a model with adapters in its weights, one at a time: what a merged model is written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import adapter as swap
from adaptome.core import packed
from adaptome.core.adapter import WeightAdapter
from adaptome.core.errors import MergeError
from adaptome.core.host import at_hand
from adaptome.core.merging import TOLERANCE, evaluating
from adaptome.core.state import is_ours, rearrange
from adaptome.core.whole import probe


@dataclass(frozen=True)
class Source:
    """One tensor of the model: its module, its name there, and the type it is written in."""

    module: nn.Module
    path: str
    name: str
    stack: tuple[WeightAdapter, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    packed: bool

    @torch.no_grad()
    def value(self) -> Tensor:
        """The tensor as it is written, on the CPU."""
        with at_hand([self.module, *(m for a in self.stack for m in a.modules())]):
            if self.packed:
                value = packed.dense(self.module, self.name)
            else:
                stored = self.module._parameters.get(self.name)
                value = self.module._buffers[self.name] if stored is None else stored.detach()  # type: ignore[assignment]
            if value.is_meta:
                raise MergeError(
                    f"{self.path}.{self.name} is on the meta device; load the model fully to merge."
                )
            for adapter in self.stack:
                value = adapter.apply_to(self.name, value)
        if self.stack and not torch.isfinite(value).all():
            raise MergeError(
                f"{self.path}.{self.name}: the merged value is not finite; the adapter holds NaN or infinity."
            )
        return value.to("cpu", self.dtype).contiguous()


def sources(
    root: nn.Module, layers: list[tuple[str, Any, list[WeightAdapter]]], dtype: torch.dtype | None
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Every tensor of the model by its key, tied ones once; and the keys that are no longer tied."""
    stacked = {id(layer): stack for _, layer, stack in layers}
    computes = getattr(getattr(root, "config", None), "dtype", None) or torch.float32
    found: dict[str, Source] = {}
    places: dict[int, list[str]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if is_ours(path):
            continue
        own = {n: v for n, v in module._parameters.items() if v is not None}
        own |= {
            n: v
            for n, v in module._buffers.items()
            if v is not None and n not in module._non_persistent_buffers_set
        }
        for name, value in own.items():
            stack = tuple(a for a in stacked.get(id(module), ()) if name in a.changes)
            is_packed = name in module._parameters and packed.is_packed(module, name)
            shape = _dense_shape(module, name) if is_packed else tuple(value.shape)
            kept = computes if is_packed else value.dtype
            kept = dtype if dtype is not None and kept.is_floating_point else kept
            key = f"{path}.{name}" if path else name
            found[key] = Source(module, path, name, stack, shape, kept, is_packed)
            places.setdefault(id(value), []).append(key)
        created = {p for a in stacked.get(id(module), ()) for p in a.creates if p in a.changes} - set(own)
        if created:
            raise MergeError(
                f"{path}: the adapter makes a {', '.join(sorted(created))} that {type(root).__name__} would not load again.\n"
                "  Merge in memory (ad.merge), or keep the adapter."
            )
    untied: list[str] = []
    alias = getattr(root, "all_tied_weights_keys", None) or {}
    for keys in places.values():
        if len(keys) == 1:
            continue
        first = next((k for k in keys if k not in alias), keys[0])
        one = all(
            found[k].module is found[first].module or (not found[k].stack and not found[first].stack)
            for k in keys
        )
        if not one:
            untied += [k for k in keys if k != first]
        else:
            for key in keys:
                if key != first:
                    del found[key]
    return found, tuple(untied)


def _dense_shape(module: Any, name: str) -> tuple[int, ...]:
    """What a packed parameter stands for; a linear layer tells without dequantising it."""
    if name == "weight" and isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return tuple(packed.dense(module, name).shape)


@torch.no_grad()
def compare(
    root: nn.Module, names: Sequence[str], layers: list[tuple[str, Any, list[WeightAdapter]]]
) -> dict[str, float]:
    """Every linear layer with the adapters around it beside the one with the weight that is written."""
    differences: dict[str, float] = {}
    with evaluating(root):
        try:
            for path, layer, stack in layers:
                host = layer._host
                if host.kind != "linear" or host.packed:
                    continue
                x = probe(host)
                swap.arrange(layer, list(names))
                adapted = layer(x).double()
                made = {}
                for name in ("weight", "bias"):
                    value = layer._parameters[name]
                    for adapter in [] if value is None else stack:
                        value = adapter.apply_to(name, value) if name in adapter.changes else value
                    made[name] = None if value is None else value.to(host.dtype)
                merged = host.run_dense(host.canonical(made["weight"]), made["bias"], x).double()
                differences[path] = float(
                    (merged - adapted).abs().max() / adapted.abs().max().clamp_min(1e-12)
                )
                if not differences[path] <= TOLERANCE.get(host.dtype, 6e-2):
                    raise MergeError(
                        f"{path}: the merged layer differs from the adapted one by {differences[path]:.2e} on a probe; nothing was written."
                    )
        finally:
            rearrange(root)
    return differences
