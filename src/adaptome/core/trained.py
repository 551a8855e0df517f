"""Modules trained whole beside the adapters: a new classifier head, a norm, rows of a resized embedding.

The layer's own parameters stay frozen; trained copies take their place while the adapter is active. So heads switch with their adapter,
detaching restores the base bit for bit, and saving needs no case of its own. A tensor that several layers share (tied embeddings)
is copied once and takes its place in all of them.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import ATTRIBUTE, Frozen, WeightAdapter
from adaptome.core.errors import HostError, TargetError
from adaptome.core.hosts import Host, host_of
from adaptome.core.targets import Targets, resolve


class Trained(WeightAdapter):
    """A trained copy of some of a layer's parameters.

    Args:
        host: the layer.
        copies: the parameters by name; shared copies are the same object in several adapters.
        rows: train these rows of the stored weight only, (first, end): the copy holds them alone.
    """

    def __init__(self, host: Host, copies: dict[str, nn.Parameter], rows: tuple[int, int] | None = None):
        super().__init__(host)
        if host.packed:
            raise HostError(
                f"{host.name} is quantised: it cannot be trained whole. Adapt it instead, or keep it out of quantisation."
            )
        self.changes = tuple(copies)
        self.rows = rows
        self.replaces = rows is None
        self.may_idle = bool(
            getattr(host.layer, "may_idle", False)
        )  # the model says that some forwards pass it by
        self.fast = rows is not None and host.kind in ("embedding", "linear") and self.changes == ("weight",)
        for name, value in copies.items():
            self.register_parameter(name, value)

    def apply_to(self, name: str, value: Tensor) -> Tensor:
        copy: Tensor = self._parameters[name]  # type: ignore[assignment]
        if self.rows is not None:
            first, end = self.rows
            copy = torch.cat([value[:first].to(copy.dtype), copy, value[end:].to(copy.dtype)])
        return copy if self.strength == 1.0 else torch.lerp(value.to(copy.dtype), copy, self.strength)

    def changed(self, name: str, value: Tensor) -> Tensor:
        return self.host.canonical(self.apply_to(name, self.host.native(value)))

    def forward(self, frozen: Frozen, x: Tensor) -> Any:
        """Rows only: replace the outputs they make, without building the whole matrix."""
        assert self.rows is not None
        first, end = self.rows
        y, rows = frozen(x), self._parameters["weight"]
        assert rows is not None
        if self.host.kind == "linear":
            bias = self.host.layer.bias
            new = nn.functional.linear(x, rows.to(x.dtype), None if bias is None else bias[first:end])
            mixed = torch.lerp(y[..., first:end], new, self.strength) if self.strength != 1.0 else new
            return torch.cat([y[..., :first], mixed.to(y.dtype), y[..., end:]], -1)
        known = (x >= first) & (x < end)
        new = nn.functional.embedding((x - first).clamp(0, end - first - 1), rows.to(y.dtype))
        new = new * getattr(
            self.host.layer, "embed_scale", getattr(self.host.layer, "scalar_embed_scale", 1.0)
        )
        mixed = torch.lerp(y, new.to(y.dtype), self.strength) if self.strength != 1.0 else new.to(y.dtype)
        return torch.where(known[..., None], mixed, y)


def trained(
    root: nn.Module, targets: dict[str, tuple[int, int] | None], dtype: torch.dtype | None
) -> dict[str, Trained]:
    """Trained copies for every layer that owns parameters under the named modules.

    Args:
        root: the model.
        targets: path of a module, or of one parameter of it -> rows to train, or None for all of it.
        dtype: of the copies; None for at least float32.

    Returns:
        layer path -> adapter, not yet put on; tied layers share their copy.
    """
    copies: dict[tuple[int, tuple[int, int] | None], nn.Parameter] = {}
    wanted: dict[str, tuple[nn.Module, dict[str, nn.Parameter], tuple[int, int] | None]] = {}
    by_parameter: dict[int, list[tuple[str, nn.Module, str]]] = {}
    modules = [(path, m) for path, m in root.named_modules() if ATTRIBUTE not in path.split(".")]
    for path, module in modules:
        for name, value in module._parameters.items():
            if value is not None:
                by_parameter.setdefault(id(value), []).append((path, module, name))
    for target, rows in targets.items():
        for path, module in modules:
            inside = path == target or path.startswith(f"{target}.")
            own = [
                v
                for name, v in module._parameters.items()
                if v is not None and (inside or f"{path}.{name}" == target)
            ]
            for value in own:
                copy = copies.get((id(value), rows))
                if copy is None:
                    part = value if rows is None else value[slice(*rows)]
                    kind = dtype or torch.promote_types(value.dtype, torch.float32)
                    copy = copies[(id(value), rows)] = nn.Parameter(part.detach().to(kind, copy=True))
                for owner_path, owner, owner_name in by_parameter[id(value)]:
                    wanted.setdefault(owner_path, (owner, {}, rows))[1][owner_name] = copy
    return {
        path: Trained(host_of(layer, path, role="head"), own, rows)
        for path, (layer, own, rows) in wanted.items()
    }


_ROWS = re.compile(r"(?P<path>.*)\[(?P<first>\d+):(?P<end>\d*)\]")


def head_targets(model: nn.Module, train: Targets) -> dict[str, tuple[int, int] | None]:
    """Path of a module, or of one parameter of it, -> rows to train, of every pattern in `train`; 'embed_tokens[100:]' names rows."""
    found: dict[str, tuple[int, int] | None] = {}
    for pattern in [train] if isinstance(train, str) else train:
        rows = _ROWS.fullmatch(pattern)
        for match in resolve(model, rows["path"] if rows else pattern):
            if next(match.module.parameters(), None) is None:
                raise TargetError(
                    f"train={pattern!r}: {match.path} ({type(match.module).__name__}) has no parameters to train."
                )
            if rows is None:
                found[f"{match.path}.{match.parameter}" if match.parameter else match.path] = None
                continue
            length = next(iter(match.module.parameters())).shape[0]
            first, end = int(rows["first"]), int(rows["end"] or length)
            if not first < end <= length:
                raise TargetError(
                    f"train={pattern!r}: rows {first} to {end} of {match.path}, which has {length}."
                )
            found[match.path] = (first, end)
    return found
