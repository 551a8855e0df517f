"""`W' = W + dW` with a dW of few entries at fixed places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host, autocasting
from adaptome.forms.delta import Delta


class Scattered(Delta):
    """Numbers at fixed places of the canonical weight; subclasses implement `numbers`.

    Args:
        host: where it sits.
        index: the places, `row * in + column` (experts: `(expert * out + row) * in + column`); numbers of one place add up.
    """

    index: Tensor

    def __init__(self, host: Host, index: Tensor):
        super().__init__(host, fast=host.kind == "linear" and not host.packed)
        self.register_buffer("index", index)

    def numbers(self) -> Tensor:
        """What is added at the places."""
        raise TypeError(f"{type(self).__name__} defines no numbers.")

    def delta(self) -> Tensor:
        return self.changed("", self.numbers().new_zeros(self.host.shape))

    def changed(self, name: str, value: Tensor) -> Tensor:
        return _moved(value, self.index, self.numbers())

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.delta().to(x.dtype))

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not frozen.pristine or autocasting(x):
            return super().forward(frozen, x, *args, **kwargs)
        numbers = self.numbers()
        values = numbers if self.strength == 1.0 else self.strength * numbers
        return _Sparse.apply(x, frozen.weight(), frozen.bias(), values, self.index)


class SparseAdapter(Scattered):
    """Trained numbers at fixed, distinct places, which are saved with the adapter."""

    def __init__(self, host: Host, index: Tensor):
        super().__init__(host, index.sort().values)
        self.values = nn.Parameter(torch.zeros(len(index)))

    def numbers(self) -> Tensor:
        return self.values


class _Sparse(torch.autograd.Function):
    """`x W'^T + b`, keeping neither W' nor its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, W, values, index)
        return F.linear(x, _moved(W, index, values), b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, W, values, index = ctx.saved_tensors
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _moved(W, index, values)
        if ctx.needs_input_grad[3]:
            dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            grad_values = dense.flatten().index_select(0, index).to(values.dtype)
        return grad_x, None, None, grad_values, None


def _moved(W: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return W.reshape(-1).index_add(0, index, values.to(W.dtype)).view(W.shape)


def places(host: Host, n: int, selection: str) -> Tensor:
    """At most n distinct places of the canonical weight.

    Args:
        host: whose weight it is.
        n: how many; all where there are fewer.
        selection: 'random', or 'largest' or 'smallest' by the weight's magnitude.
    """
    total = size(host)
    n = min(n, total)
    if selection != "random":
        return host.weight().abs().flatten().topk(n, largest=selection == "largest").indices
    if torch.get_default_device().type == "meta":
        return torch.empty(n, dtype=torch.int64)
    if 4 * n > total:
        return torch.randperm(total)[:n]
    drawn = torch.randint(total, (2 * n + 16,)).unique()  # of so many at least n differ
    return drawn[torch.randperm(len(drawn))[:n]]


def size(host: Host) -> int:
    """Numbers in the canonical weight."""
    return host.fan_in * host.fan_out * host.copies
