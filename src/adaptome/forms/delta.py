"""`W' = W + dW` with a structured dW: subclasses give `delta()`, and `product(x)` where the structure has a faster form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.hosts import Host


class Delta(WeightAdapter):
    """Base of adapters that add a matrix.

    Args:
        host: where it sits.
        fast: whether `product` is implemented for this host; else the layer reads `W + delta()`.
    """

    def __init__(self, host: Host, fast: bool = False):
        super().__init__(host)
        self.fast = fast

    def delta(self) -> Tensor:
        """The update in canonical form, `[*, out, in]`, scale included."""
        raise TypeError(f"{type(self).__name__} defines no delta.")

    def product(self, x: Tensor) -> Tensor:
        """`delta() x` without building it: x as the layer takes it, the result as the layer puts out, without bias."""
        raise TypeError(f"{type(self).__name__} defines no product.")

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        added = self.product(x)
        return y + (added if self.strength == 1.0 else self.strength * added).to(y.dtype)

    def changed(self, name: str, value: Tensor) -> Tensor:
        return value + self.delta().to(value.dtype)
