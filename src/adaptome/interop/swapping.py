"""One adapter put in another's place while the model serves: the tensors change, nothing of the model does.

The place is a LoRA of a rank that all adapters fit, `pad_to`, filled up with zeros, and of scale 1, which is in B. So a compiled model sees neither another
shape nor another number to guard on, and is not compiled again.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.checkpoint import load
from adaptome.core.errors import MergeError, StateError
from adaptome.core.model import set_trainable
from adaptome.core.state import Attachment, adapters, attachment_of, distributed_wrapper, root_of
from adaptome.interop.lora_factors import Factors, lora_factors


@dataclass(frozen=True)
class Swap:
    """What is in the place now.

    Attributes:
        name: of the place.
        method: of the adapter that was put into it.
        rank: the largest that the adapter has, of `pad_to`.
        layers: how many it sits on.
        empty: the layers of the place that it does not sit on, and that run as the base.
        error: the largest relative error of an update; 0 where all are exact.
    """

    name: str
    method: str
    rank: int
    pad_to: int
    layers: int
    empty: tuple[str, ...]
    error: float

    def __str__(self) -> str:
        rest = f", {len(self.empty)} as the base" if self.empty else ""
        return (
            f"{self.method} in {self.name!r}: rank {self.rank} of {self.pad_to} on {self.layers} layers{rest}"
        )


def hot_swap(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "hot",
    *,
    pad_to: int | None = None,
    targets: str | Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    max_error: float = 1e-4,
    check_base: bool = True,
) -> Swap:
    """Put a saved adapter in the place of the one called `name`; a compiled model goes on without compiling again.

    The first call makes the place, before the model is compiled. Call it between forwards: one that runs meanwhile sees some layers of either.

    Args:
        model: plain, or compiled.
        folder: of any adapter that is an update of low rank, ours or PEFT's.
        name: of the place.
        pad_to: its rank, the largest that will come; needed when it is made.
        targets: its layers, when it is made; None for those of this first adapter. What later adapters leave out runs as the base.
        dtype: of its tensors, when it is made; None for float32.
        max_error: of an update that is cut to `pad_to`, relative.
        check_base: refuse an adapter of another base.

    Raises:
        StateError: there is no place yet and no `pad_to`; the place is another method's, or has not all layers or the rank; a sharded model.
        CheckpointError: a subclass for each fault of the folder.
        MergeError: the adapter is no update of weights, or is cut by more than `max_error`.

    Nothing is changed then.
    """
    root = root_of(model)
    found = _read(root, folder, check_base)
    place = adapters(root).get(name)
    if place is None and pad_to is None:
        raise StateError(
            f"there is no place called {name!r} on the model yet.\n  Make it: ad.hot_swap(model, folder, pad_to=64), with the largest rank that will come."
        )
    rank = pad_to if place is None else _rank_of(place)
    assert rank is not None
    factors = _factors(found, rank, max_error)
    if place is None:
        wanted = [f"={path}" for path in factors] if targets is None else targets
        attach(root, "lora", name, targets=wanted, r=rank, alpha=float(rank), dtype=dtype, seed=0)
        place = attachment_of(root, name)
        set_trainable(root, name, False)
    missing = [path for path in factors if path not in place.adapters]
    if missing:
        raise StateError(
            f"{folder} sits on {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, where {name!r} has no place.\n"
            "  Make the place with targets= of all layers that will be needed, as targets='all-linear'."
        )
    for path, adapter in place.adapters.items():
        _put(adapter, factors.get(path))
    empty = tuple(path for path in place.adapters if path not in factors)
    used = max(f.A.shape[-2] for f in factors.values())
    return Swap(
        name, found.method.name, used, rank, len(factors), empty, max(f.error for f in factors.values())
    )


def _read(root: nn.Module, folder: str | os.PathLike[str], check_base: bool) -> Attachment:
    """The adapter of a folder, loaded as `ad.load` does, on a copy of the model's modules that has the same tensors."""
    wrapper = distributed_wrapper(root)
    if wrapper is not None:
        raise StateError(f"this model is wrapped by {wrapper}; adapters are swapped on whole models.")
    if any(a.merged for a in adapters(root).values()):
        raise StateError("an adapter is merged into the weights.\n  Take it out first: ad.unmerge(model).")
    tensors: dict[int, Any] = {}
    for value in [*root.parameters(), *root.buffers()]:
        # other objects, since what asks for gradients is theirs; packed ones never do
        tensors[id(value)] = (
            nn.Parameter(value.detach(), value.requires_grad) if type(value) is nn.Parameter else value
        )
    beside = copy.deepcopy(root, tensors)
    load(beside, folder, _BESIDE, check_base=check_base)
    return attachment_of(beside, _BESIDE)


_BESIDE = "to-be-swapped"


def _factors(found: Attachment, rank: int, max_error: float) -> dict[str, Factors]:
    if found.heads:
        raise MergeError(
            f"the adapter trains {', '.join(found.heads)} whole, which is no update of low rank.\n  ad.load it beside, and ad.activate the one to run."
        )
    factors = lora_factors(found, rank)
    worst = max(factors, key=lambda path: factors[path].error)
    if factors[worst].error > max_error:
        raise MergeError(
            f"{found.method.name} on {worst} does not fit rank {rank}: cut to it, the update differs by {factors[worst].error:.2g}.\n"
            f"  Make the place with a larger pad_to, or allow it: max_error={factors[worst].error:.1g}."
        )
    return factors


def _rank_of(place: Attachment) -> int:
    settings = place.method.settings()
    if place.method.name != "lora" or settings["alpha"] != settings["r"] or settings["dropout"]:
        raise StateError(
            f"{place.name!r} is {place.method!r}, which has a scale or a form of its own: nothing can be swapped into it.\n"
            "  Choose another name, and make a place of it: ad.hot_swap(model, folder, 'hot', pad_to=64)."
        )
    return int(settings["r"])


@torch.no_grad()
def _put(adapter: Any, factors: Factors | None) -> None:
    """Copy factors into a place, zeros behind them."""
    A: Tensor = adapter.A
    B: Tensor = adapter.B
    A.zero_()
    B.zero_()
    if factors is not None:
        r = factors.A.shape[-2]
        A[..., :r, :].copy_(factors.A)
        B[..., :r].copy_(factors.B)
