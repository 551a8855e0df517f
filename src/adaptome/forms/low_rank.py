"""`W' = W + scale * B A`: everything a low-rank method needs beyond its factors.

Forward never builds `B A`: it adds `scale * B (A x)` to the layer's output, on plain linear layers in one node with it. Where a host has no such product (fused experts, parameters
by name), the layer reads `W + scale * B A` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.hosts import Host, first_input
from adaptome.forms.dropped import dropped_linear
from adaptome.forms.fused import linear_with_pair, plain_weight

#: tokens of a row up to which one batched product for all rows is faster than one product for each
FEW = 8


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
        cls, members: Mapping[Any, Any], rows: Any, frozen: Frozen, *args: Any, **kwargs: Any
    ) -> Any:
        """The layer once; then, of few tokens, all in two batched products, of many, each on its own rows where they lie.

        Adapters that drop inputs, or add otherwise than by two products, run one after another.
        """
        host, own = frozen.layer._host, list(members.values())
        if host.kind != "linear" or not all(a.fused and not (a.dropout and a.training) for a in own):
            return None
        y: Tensor = frozen(*args, **kwargs)
        x = first_input(frozen.layer, args, kwargs).to(y.dtype)
        pairs = {name: (*a.factors(), a.scale * a.strength) for name, a in members.items()}
        spread = rows.spread
        tokens = y.numel() // y.shape[-1]
        alone = len(spread.names) * spread.each == len(y) and len(members) == len(spread.names)
        if alone and spread.each == 1 and y.dim() == 3 and tokens <= FEW * len(y):
            A, B = rows.keep(y.dtype, own, lambda: _batched([pairs[name] for name in spread.names], y))
            return torch.baddbmm(y, x @ A.mT, B.mT)
        parts = []
        for name, where in spread.groups:
            part = y[where]
            if name in pairs:
                A, B, scale = pairs[name]
                part = host.add_expanded(part, F.linear(x[where], A.to(y.dtype)), B, scale)
            parts.append(part)
        return spread.joined(parts)

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


def _batched(pairs: Sequence[tuple[Tensor, Tensor, float]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of any ranks one behind another, A `[n, r, in]` and B `[n, out, r]` with the scales in it; zeros fill up the ranks."""
    r = max(A.shape[-2] for A, _, _ in pairs)
    As = [F.pad(A, (0, 0, 0, r - A.shape[-2])) for A, _, _ in pairs]
    Bs = [F.pad(B * scale, (0, r - B.shape[-1])) for _, B, scale in pairs]
    return torch.stack(As).to(like.dtype), torch.stack(Bs).to(like.dtype)


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
