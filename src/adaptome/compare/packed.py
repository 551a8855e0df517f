"""NF4 layers on shapes alone: bitsandbytes packs a weight on its first move to a device, which the meta device never sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.hosts import host_of
from adaptome.core.targets import resolve
from adaptome.quantization.layers import PackedLinear
from adaptome.recipe.schema import QuantizationSection

#: numbers that share one float32 scale, as bitsandbytes has it
GROUP = 64


class _Form:
    """4 bits a number and their scales; the weight is made in one pass, as one kernel does."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def row_bytes(self, fan_in: int) -> int:
        return -(-fan_in // 2) + 4 * -(-fan_in // GROUP)

    def decode(self, data: Tensor, fan_in: int) -> Tensor:
        return torch.zeros(data.shape[0], fan_in, device=data.device, dtype=self.dtype)


def pack(model: nn.Module, section: QuantizationSection) -> None:
    """Replace the linear layers that a recipe stores in NF4, in place."""
    for found in resolve(model, section.targets, exclude=section.exclude):
        host = host_of(found.module, found.path, found.parameter, found.role, found.layer)
        bias, form = host.layer._parameters.get("bias"), _Form(host.dtype)
        given: dict[str, Any] = {"form": form, "device": host.weight().device, "dtype": host.dtype}
        made = PackedLinear(host.fan_in, host.fan_out, bias is not None, **given)
        if bias is not None:
            made.bias = bias
        model.set_submodule(host.path, made)
