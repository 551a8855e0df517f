"""The work of a training step: what every operation multiplies and moves, counted on shapes, and the time that takes a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from adaptome.compare.devices import Device

_aten = torch.ops.aten
#: operations that make a tensor and write nothing into it
_EMPTY = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}


@dataclass(frozen=True)
class Operation:
    """One operation: operations of arithmetic in matrix products, bytes read and written, and the dtype of its result."""

    flops: int
    moved: int
    dtype: str


@dataclass(frozen=True)
class Work:
    """The operations of a step, forward ones first.

    Attributes:
        operations: in their order. forward: how many of them are of the forward.
    """

    operations: tuple[Operation, ...]
    forward: int

    @property
    def flops(self) -> int:
        """Operations of arithmetic in matrix products, convolutions and attentions."""
        return sum(one.flops for one in self.operations)

    def seconds(self, device: Device, at_best: bool = False) -> float:
        """Time on a device: each operation is held up by its arithmetic or by its memory, whichever takes longer, and has to be started.

        Args:
            at_best: by the device's own rates, though a step reaches a part of them only: a lower bound.
        """
        return _seconds(self.operations, device, at_best)

    def forward_seconds(self, device: Device) -> float:
        """Time of the forward alone, as in evaluating."""
        return _seconds(self.operations[: self.forward], device, False)


def _seconds(operations: tuple[Operation, ...], device: Device, at_best: bool) -> float:
    matmul, copying = (1.0, 1.0) if at_best else (device.matmul, device.copying)
    busy = sum(
        max(one.flops / (device.rate(one.dtype) * matmul), one.moved / (device.bandwidth * copying))
        for one in operations
    )
    # what is started while the device is busy waits for nothing: the slower of the two decides
    started = 0.0 if at_best else device.launch * len(operations)
    return max(busy, started) if device.kernels == "gpu" else busy + started


class Counted(TorchDispatchMode):
    """Within it every operation is counted, on the meta device, on fake tensors or on real ones alike."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.forward = 0

    def turn(self) -> None:
        """The forward ends here."""
        self.forward = len(self.operations)

    def work(self) -> Work:
        """What was counted."""
        return Work(tuple(self.operations), self.forward)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if func.is_view or packet in _EMPTY or packet is _aten.detach:
            return out
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not made:
            return out
        taken = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        if packet is _aten.embedding:  # it reads the rows it gives, not the table
            taken = made
        moved = sum(t.numel() * t.element_size() for t in (*taken, *made))
        dtype = str(made[0].dtype).removeprefix("torch.")
        self.operations.append(Operation(_flops(packet, args, kwargs or {}, out), moved, dtype))
        return out


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Of matrix products, convolutions and attentions; 0 of the others."""
    if packet is _aten.addmm_:  # the registry knows the one that is not in place
        packet = _aten.addmm
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
        return 2 * _attended(args[0], args[1])
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return 5 * _attended(
            args[1], args[2]
        )  # the scores once more, and two products for the gradients of each product
    if packet not in flop_registry:
        return 0
    return int(flop_registry[packet](*args, **kwargs, out_val=out))


def _attended(query: Tensor, key: Tensor) -> int:
    """Of one product of attention: q [b, h, s, e] by k [b, h or fewer, t, e]."""
    return int(2 * query.numel() * key.shape[-2])
