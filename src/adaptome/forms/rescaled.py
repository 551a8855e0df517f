"""`W' = W + L diag(d - d0) R`: the weight's own factors stay, and the diagonal between them is trained.

With all of the factors, W = L diag(d0) R and a linear layer runs as L (d * (R x)); with some, or in half precision, what is new is
added to W x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.forms.low_rank import LowRank


class Rescaled(LowRank):
    """Base of adapters that train the diagonal of a factorisation of W; subclasses implement `change`.

    The factors are computed from the base once, when the adapter is built, and never saved.

    Args:
        host: where it sits.
        L: `[*, out, r]`.
        d0: `[*, r]`, the diagonal of the base.
        R: `[*, r, in]`.
        complete: whether `W = L diag(d0) R`.
    """

    rebuilt = ("L", "d0", "R")

    def __init__(self, host: Host, L: Tensor, d0: Tensor, R: Tensor, complete: bool):
        super().__init__(host)
        # in half precision the two products would round what W x does not, and the model would not start as the base
        exact = host.dtype in (torch.float32, torch.float64)
        self.complete = complete and exact and host.kind == "linear" and not host.packed
        for name, value in (("L", L), ("d0", d0), ("R", R)):
            self.register_buffer(name, value.contiguous())

    def derive(self) -> None:
        self.complete = self.complete and not self.given  # other factors are not those of W

    def change(self) -> Tensor:
        """`d - d0 [*, r]`; exactly 0 where the model is to start as the base."""
        raise TypeError(f"{type(self).__name__} defines no change.")

    def factors(self) -> tuple[Tensor, Tensor]:
        d = self.change()
        return d[..., None] * self.get_buffer("R").to(d.dtype), self.get_buffer("L").to(d.dtype)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        """d acts on the r activations, so that x is not saved for it."""
        d, L, R = self.change(), self.get_buffer("L"), self.get_buffer("R")
        z = self.host.reduce(x, R) if self.host.kind == "embedding" else self.host.reduce(x.to(y.dtype), R)
        channels = d.repeat(getattr(self.host.layer, "groups", 1))
        z = z * (self.host.along_output(channels) if self.host.kind == "conv" else channels).to(z.dtype)
        return self.host.add_expanded(y, z, L, self.strength)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (self.complete and frozen.pristine):
            return super().forward(frozen, x, *args, **kwargs)
        change, bias = self.change(), frozen.bias()
        d = self.get_buffer("d0").to(change.dtype) + self.strength * change
        z = self.host.reduce(x, self.get_buffer("R"))
        y = self.host.expand(z * d.to(z.dtype), self.get_buffer("L"))
        return y if bias is None else y + bias.to(y.dtype)
