"""What activations that are zero buy: an MLP's last map on the columns that are not, and MLPs removed by their gates.

    with gathered_mlps(model) as saved:      # exact: only columns that are zero for every token of a batch are left out
        model(**batch)
    print(saved.share)                       # of the last maps' multiplications

    report = skip_mlps(model, below=0.5)     # for good: the weights of MLPs with a small gate are gone

The first map must run before it is known what is zero, so at most a half of an MLP's work is saved (a third, where it is gated). The
energy an accelerator for sparse activations saves goes with the density alone (`activation-density` measures it); on CPUs and GPUs
`benchmarks/sparse_mlp.py` shows when gathering is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.activations import MLP, mlps
from adaptome.core.adapter import ATTRIBUTE, Adapted
from adaptome.core.errors import HostError, StateError
from adaptome.core.hosts import host_of


@dataclass
class Saved:
    """Multiplications of the last maps.

    Attributes:
        dense: what they would have been. done: what they were.
    """

    dense: int = 0
    done: int = 0

    @property
    def share(self) -> float:
        """Of them that were left out."""
        return 1 - self.done / self.dense if self.dense else 0.0


class GatheredLinear(nn.Module):
    """`y = W x + b` on those columns of W whose input is not zero for some token.

    Args:
        weight: `[out, in]`; a copy is kept as `[in, out]`, whose rows are gathered.
        bias: `[out]` or None.
        threshold: magnitudes up to it count as zero; 0 keeps the result.
        most: share of columns above which nothing is gathered: there `benchmarks/sparse_mlp.py` found it slower.
        saved: where multiplications are counted.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        threshold: float = 0.0,
        most: float = 0.15,
        saved: Saved | None = None,
    ):
        super().__init__()
        self.threshold, self.most, self.saved = threshold, most, saved if saved is not None else Saved()
        self.register_buffer("rows", weight.detach().t().contiguous(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    @property
    def weight(self) -> Tensor:
        """`[out, in]`; T5 asks it for its type."""
        return self.get_buffer("rows").t()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        flat = x.flatten(0, -2)
        rows = self.get_buffer("rows")
        kept = (flat.abs() > self.threshold).any(0).nonzero()[:, 0]
        self.saved.dense += flat.shape[0] * rows.numel()
        if len(kept) > self.most * rows.shape[0]:
            y = flat @ rows
            self.saved.done += flat.shape[0] * rows.numel()
        else:
            y = flat[:, kept] @ rows[kept]
            self.saved.done += flat.shape[0] * len(kept) * rows.shape[1]
        bias = self._buffers["bias"]
        y = y if bias is None else y + bias
        return y.unflatten(0, x.shape[:-1])


@contextmanager
def gathered_mlps(model: nn.Module, threshold: float = 0.0, most: float = 0.15) -> Iterator[Saved]:
    """Run the MLPs' last maps by gathering, without gradients, within the block.

    Args:
        model: adapters on its last maps must be merged or elsewhere.
        threshold: magnitudes up to it count as zero; above 0 the result is another.
        most: share of columns above which a batch runs densely: gathering costs.

    Raises:
        HostError: a last map is no plain linear layer.
    """
    saved, before = Saved(), {}
    try:
        for mlp in mlps(model):
            layer = model.get_submodule(mlp.down)
            host = host_of(layer, mlp.down)
            if isinstance(layer, Adapted) or host.kind != "linear" or host.packed:
                raise HostError(
                    f"{mlp.down} ({type(layer).__name__}) is no plain linear layer, and its columns cannot be gathered.\n"
                    "  Merge the adapters on it; leave it in full precision."
                )
            before[mlp.down] = layer
            made = GatheredLinear(host.weight(), layer._parameters.get("bias"), threshold, most, saved)
            model.set_submodule(mlp.down, made)
        with torch.no_grad():
            yield saved
    finally:
        for path, layer in before.items():
            model.set_submodule(path, layer)


# -- skipping ------------------------------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """In place of an MLP, or of its last map: zeros of the width that a residual stream has."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Skipped:
    """What `skip_mlps` did.

    Attributes:
        gates: path of an MLP -> its gate. removed: paths of those that are gone.
        before, after: bytes of the model's parameters.
    """

    gates: dict[str, float]
    removed: tuple[str, ...]
    before: int
    after: int

    def __str__(self) -> str:
        return (
            f"{len(self.removed)} of {len(self.gates)} MLPs removed, {self.before:,} -> {self.after:,} bytes"
        )


def skip_mlps(model: nn.Module, below: float = 0.5, most: int | None = None) -> Skipped:
    """Remove the MLPs whose gate is small, with their weights and what sits on them. Cannot be undone.

    Args:
        model: with the method `mlp-gate` on it. Only for inference: a trained adapter can no longer be saved from it.
        below: gates under it are small.
        most: MLPs to remove at most, those with the smallest gates first; None for no limit.

    Raises:
        StateError: no MLP has a gate.
    """
    found: dict[str, tuple[MLP, float]] = {}
    for mlp in mlps(model):
        for adapter in getattr(model.get_submodule(mlp.host), ATTRIBUTE, nn.ModuleDict()).values():
            if callable(gate := getattr(adapter, "gate", None)):
                found[mlp.block] = mlp, float(gate().detach())
    if not found:
        raise StateError("no MLP has a gate.\n  Train with mlp-gate: methods: [..., mlp-gate].")
    before = _bytes(model)
    small = sorted((g, path) for path, (_, g) in found.items() if g < below)[:most]
    for _, path in small:
        _remove(model, found[path][0])
    return Skipped(
        {k: g for k, (_, g) in found.items()}, tuple(path for _, path in small), before, _bytes(model)
    )


def _remove(model: nn.Module, mlp: MLP) -> None:
    if mlp.host == mlp.block:
        model.set_submodule(mlp.block, Nothing())
        return
    for path in mlp.up:  # the MLP is no module: its maps go one by one
        model.set_submodule(path, nn.Identity())
    model.set_submodule(mlp.activation, nn.Identity())
    model.set_submodule(mlp.down, Nothing())


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
