"""`y' = gamma * y + beta` per channel, right after a layer: folds exactly into its weight and bias.

What is trained is `g = gamma - 1`, so that weight decay pulls towards the identity and the identity is exact.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, settings
from adaptome.forms.per_sample import per_row

Init = Literal["identity", "normal"]
Vectors = tuple[Tensor | None, Tensor | None]


@settings
class ModulationMethod(Method):
    """Base of methods whose adapters are Modulations."""

    scale: bool = option(True, help="train gamma")
    shift: bool = option(True, help="train beta; needs layers with a place for a bias, which RMS norms lack")
    init: Init = option("identity", help="'identity' starts as the base; 'normal' as the authors of SSF do")

    def validate(self) -> None:
        if not (self.scale or self.shift):
            raise MethodError(f"{self.name}: scale and shift are both off; nothing would train.")

    def admits(self, host: Host) -> str | None:
        if self.shift and host.kind in self.hosts and "bias" not in host.layer._parameters:
            return f"a {type(host.layer).__name__} has no place for a bias, into which the shift merges; set shift=False"
        return super().admits(host)

    def vectors_on(self, host: Host) -> int:
        """How many numbers a gamma and a beta of this layer have together."""
        return (self.scale + self.shift) * host.fan_out


class Modulation(WeightAdapter):
    """Base of adapters that scale and shift a layer's output; subclasses implement `vectors`.

    Args:
        host: a linear layer, a convolution or a norm.
        scale: whether there is a gamma.
        shift: whether there is a beta; the merged layer gets a bias where it had none.
    """

    fast = True
    #: the fact that chooses the vectors, for errors
    fact = ""

    def __init__(self, host: Host, scale: bool, shift: bool):
        super().__init__(host)
        self.changes = ("weight", "bias") if scale else ("bias",)
        self.creates = ("bias",) if shift else ()

    def vectors(self) -> Vectors | None:
        """g and beta, each `[out]`, `[batch, out]` or None; None for the layer as it is."""
        raise TypeError(f"{type(self).__name__} defines no vectors.")

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(*args, **kwargs)
        found = self.vectors()
        if found is None:
            return y
        g, beta = (None if v is None else spread(self.host, v, y, self.fact) * self.strength for v in found)
        if g is None:
            return y if beta is None else y + beta.to(y.dtype)
        gamma = (1 + g).to(y.dtype)
        return y * gamma if beta is None else torch.addcmul(beta.to(y.dtype), y, gamma)

    def changed(self, name: str, value: Tensor) -> Tensor:
        found = self.vectors()
        if found is None:
            return value
        g, beta = found
        if g is not None:
            gamma = 1 + g.to(value.dtype)
            value = value * (gamma[:, None] if value.dim() > 1 else gamma)
        return value if beta is None or name != "bias" else value + beta.to(value.dtype)


def drawn(width: int, init: Init) -> nn.Parameter:
    """One vector: zeros, or N(0, 0.02^2) as SSF's code has it."""
    return nn.Parameter(torch.zeros(width) if init == "identity" else torch.randn(width) * 0.02)


def spread(host: Host, vector: Tensor, y: Tensor, fact: str) -> Tensor:
    """`[out]` or `[batch, out]`, shaped to broadcast against the layer's output y."""
    spatial = 0
    if host.kind == "conv":
        spatial = len(host.layer.kernel_size)
    elif isinstance(host.layer, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        spatial = y.dim() - 2
    if vector.dim() == 1:
        return vector.view(-1, *[1] * spatial)
    rows = per_row(vector, y.shape[0], fact)
    return rows.view(rows.shape[0], *[1] * (y.dim() - 2 - spatial), rows.shape[1], *[1] * spatial)
