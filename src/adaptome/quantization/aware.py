"""torchao's layers for quantisation-aware training: the weight is kept in full precision, and rounded in every forward.

The layer's weight, as adapters read it, is the rounded one. Merging writes into the full-precision one, which the layer rounds again: so it is
asked for by `requantise=True`, and its error is told. A layer that rounds its activations too does so in its own forward alone: methods that
multiply by a weight of their own (a rotation, an update that is formed) leave them unrounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.packed import Library, register


class Aware(Library):
    """torchao's FakeQuantizedLinear and FakeQuantizedEmbedding."""

    name = "torchao (quantisation-aware)"

    def fits(self, layer: nn.Module, value: Tensor) -> bool:
        """Whether the value is the weight of a layer that rounds it."""
        rounds: Any = layer._modules.get("weight_fake_quantizer")
        return (
            rounds is not None
            and getattr(rounds, "enabled", True)
            and layer._parameters.get("weight") is value
        )

    def dense(self, layer: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The rounded weight."""
        rounded: Tensor = layer.weight_fake_quantizer(value.detach())
        return rounded.detach().to(dtype, copy=True)

    def repack(self, layer: nn.Module, value: Tensor, weight: Tensor) -> nn.Parameter:
        """The weight in the value's type: the layer rounds it."""
        return nn.Parameter(weight.to(value.dtype), requires_grad=False)


register(Aware())
