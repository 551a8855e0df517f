"""`W' = W + dW` with a structured dW: subclasses give `delta()`, and `product(x)` where the structure has a faster form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.hosts import Host


class Delta(WeightAdapter):
    """Base of adapters that add a matrix.

    Args:
        host: where it sits.
        fast: whether `product` is implemented for this host; else the layer reads `W + delta()`.
        shared: the method's state that all its adapters use.
    """

    additive = True

    def __init__(self, host: Host, fast: bool = False, shared: nn.Module | None = None):
        super().__init__(host, shared)
        self.fast = fast

    def delta(self) -> Tensor:
        """The update in canonical form, `[*, out, in]`, scale included."""
        raise TypeError(f"{type(self).__name__} defines no delta.")

    def product(self, x: Tensor) -> Tensor:
        """`delta() x` without building it: x as the layer takes it, the result as the layer puts out, without bias."""
        raise TypeError(f"{type(self).__name__} defines no product.")

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        added = self.product(x.to(y.dtype) if x.is_floating_point() else x)
        return self.host.add(y, added, self.strength)

    def changed(self, name: str, value: Tensor) -> Tensor:
        return value + self.delta().to(value.dtype)


def run_changed(adapter: Any, frozen: Frozen, x: Tensor) -> Tensor:
    """The adapter's linear layer run with `W + delta()`, formed again in the backward: no `[out, in]` matrix is kept for it.

    The cheaper form of an update for many tokens: one product with the weight instead of two.
    """
    W, bias = frozen.weight(), frozen.bias()

    def run(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        return adapter.host.run_dense((W + adapter.strength * adapter.delta()).to(W.dtype), bias, x)

    if not torch.is_grad_enabled():
        return run(x, W, bias)
    y: Tensor = checkpoint(run, x, W, bias, use_reentrant=False, preserve_rng_state=False)
    return y
