"""`W' = f(W)`: subclasses give `weight(W)`; the layer's own forward then runs with W'."""

from __future__ import annotations

from torch import Tensor

from adaptome.core.adapter import WeightAdapter


class Reparametrization(WeightAdapter):
    """Base of adapters that make a new weight from the frozen one.

    Subclasses implement `weight`, and may set `fast` and implement `forward` where the result has a cheaper form.
    """

    def weight(self, W: Tensor) -> Tensor:
        """The new weight, canonical `[*, out, in]`, from the one before."""
        raise TypeError(f"{type(self).__name__} defines no weight.")

    def changed(self, name: str, value: Tensor) -> Tensor:
        return self.weight(value) if name == self.host.parameter else value
