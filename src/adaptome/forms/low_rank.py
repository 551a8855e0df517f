"""`W' = W + scale * B A`: everything a low-rank method needs beyond its factors.

Forward never builds `B A`: it adds `scale * B (A x)` to the layer's output, on plain linear layers in one node with it. Where a host has no such product (fused experts, parameters
by name), the layer reads `W + scale * B A` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.hosts import Host
from adaptome.forms.dropped import dropped_linear
from adaptome.forms.fused import linear_with_pair, plain_weight


#: of the layer's own product that the factors of all adapters together may cost every row
SHARE = 0.5


class LowRank(WeightAdapter):
    """Base of adapters whose update is `scale * B A`.

    Subclasses create their parameters and implement `factors`.

    Args:
        host: where it sits.
        scale: of the update.
        dropout: probability, on the adapter's input (embeddings: on the reduced activations).
        shared: the method's state that all its adapters use.
    """

    additive = True
    #: whether `factors` makes large factors of small tensors at little cost, so that the backward makes them again
    makes_factors: ClassVar[bool] = False
    #: whether `add_product` is the one below, so that the layer and its update can run as one
    fused: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.fused = cls.add_product is LowRank.add_product

    def __init__(self, host: Host, scale: float = 1.0, dropout: float = 0.0, shared: nn.Module | None = None):
        super().__init__(host, shared)
        self.scale, self.dropout = scale, dropout
        self.fast = host.has_product

    def factors(self) -> tuple[Tensor, Tensor]:
        """`A [*, r, in]` and `B [*, out, r]`; `*` is `(experts,)` on fused experts, else nothing."""
        raise TypeError(f"{type(self).__name__} defines no factors.")

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`frozen(x) + scale * B A dropout(x)`."""
        plain = plain_weight(self.host, frozen, x) if self.fused else None
        if plain is not None:
            dropout, again = (
                self.dropout if self.training else 0.0,
                self.factors if self.makes_factors else None,
            )
            return linear_with_pair(x, *plain, self.factors(), self.scale * self.strength, dropout, again)
        y: Tensor = frozen(x, *args, **kwargs)
        return self.add_product(y, x)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        """`y + scale * strength * B A dropout(x)`."""
        return self.add_pair(y, x, *self.factors(), self.dropout)

    def add_pair(self, y: Tensor, x: Tensor, A: Tensor, B: Tensor, dropout: float = 0.0) -> Tensor:
        """As `add_product`, with the factors given."""
        if self.host.kind == "embedding":
            z = F.dropout(self.host.reduce(x, A), dropout, self.training)
        else:
            z = self.reduced(x.to(y.dtype), A, dropout)
        return self.host.add_expanded(y, z, B, self.scale * self.strength)

    def reduced(self, x: Tensor, A: Tensor, dropout: float) -> Tensor:
        """`A dropout(x)`."""
        if dropout and self.training and self.host.kind == "linear":
            return dropped_linear(x, A.to(x.dtype), dropout)
        return self.host.reduce(F.dropout(x, dropout, self.training), A)

    @classmethod
    def together(
        cls, members: Mapping[str, Any], rows: Any, frozen: Frozen, *args: Any, **kwargs: Any
    ) -> Any:
        """All of them in two products, `y + B (mine * (A x))` with the factors one below another and `mine` each row's own of them.

        Where they are few beside the layer's sides: each row pays for the factors of all. Else, and under dropout, one after another.
        """
        host, own = frozen.layer._host, list(members.values())
        if host.kind != "linear" or not all(a.fused and not (a.dropout and a.training) for a in own):
            return None
        pairs = [a.factors() for a in own]
        ranks = [A.shape[-2] for A, _ in pairs]
        if sum(ranks) * (host.fan_in + host.fan_out) > SHARE * host.fan_in * host.fan_out:
            return None
        y: Tensor = frozen(*args, **kwargs)
        x = (args[0] if args else next(iter(kwargs.values()))).to(y.dtype)

        def stacked() -> tuple[Tensor, Tensor, Tensor]:
            scaled = [B * (a.scale * a.strength) for a, (_, B) in zip(own, pairs, strict=True)]
            numbers = [rows.spread.names.index(name) for name in members]
            other = torch.tensor([n for n, r in zip(numbers, ranks, strict=True) for _ in range(r)], device=y.device) != rows.spread.number[:, None]  # fmt: skip
            other = other.view(len(other), *[1] * (y.dim() - 2), -1)
            return torch.cat([A for A, _ in pairs]).to(y.dtype), torch.cat(scaled, -1).to(y.dtype), other

        A, B, other = rows.keep((y.dtype, y.dim(), len(y)), own, stacked)
        # what overflows in another's factor must not reach this row, so it is no product with zeros
        return host.add_expanded(y, F.linear(x, A).masked_fill(other, 0.0), B, 1.0)

    def delta(self) -> Tensor:
        """`scale * B A`, `[*, out, in]`."""
        A, B = self.factors()
        return self.scale * (B @ A)

    def changed(self, name: str, value: Tensor) -> Tensor:
        A, B = self.factors()
        return value + self.scale * (B.to(value.dtype) @ A.to(value.dtype))

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """Exact LoRA factors `(A, B)` with the scale inside B."""
        A, B = self.factors()
        return A.detach(), B.detach() * (self.scale * self.strength)


class FactorPair(LowRank):
    """One pair of its own: A `[*, r, in]` Kaiming-uniform, B `[*, out, r]` = 0.

    Args:
        host: where it sits.
        r: rank.
        scale, dropout, shared: as LowRank's.
    """

    def __init__(
        self, host: Host, r: int, scale: float, dropout: float = 0.0, shared: nn.Module | None = None
    ):
        super().__init__(host, scale, dropout, shared)
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, r))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B


def kaiming(tensor: Tensor) -> Tensor:
    """Kaiming-uniform with a = sqrt(5) over the last dimension, `U(-1/sqrt(in), 1/sqrt(in))`, as LoRA's code has it.

    Args:
        tensor: `[*, r, in]`, filled in place.
    """
    bound = tensor.shape[-1] ** -0.5
    with torch.no_grad():
        return tensor.uniform_(-bound, bound)


def group_of(host: Host) -> str:
    """What layers have in common that share tensors: their role and shape. A valid name of a parameter."""
    return f"{host.role}_{host.fan_in}_{host.fan_out}"
