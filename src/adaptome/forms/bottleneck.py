"""`g(U f(D x))`: the small network inside bottleneck adapters, on a linear layer or around a whole module."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host, autocasting
from adaptome.core.method import option, settings
from adaptome.forms.insertion import BEHIND, Inserted, InsertedMethod, Insertion, SublayerMethod
from adaptome.forms.insertion import hidden as hidden
from adaptome.forms.insertion import with_hidden as with_hidden

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "identity"]
#: those that leave 0 as it is and let a gradient through there
Outer = Literal["identity", "gelu", "silu", "tanh"]
Start = Literal["zero", "bert", "linear"]
Precision = Literal["input", "float32"]


def _same(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": _same,
}


@settings
class BottleneckMethod(InsertedMethod):
    """Base of methods whose network is `g(U f(D h + d) + u)`."""

    activation: Activation = option("tanh", help="f")
    outer: Outer = option("identity", help="g, behind the up-projection: 'gelu' in PeftCD's blocks")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    bias: bool = option(False, help="biases in the bottleneck")
    init: Start = option(
        "zero", help="'zero' starts as the base; 'bert' draws from N(0, 0.02^2), 'linear' as nn.Linear does"
    )
    precision: Precision = option(
        "input", help="of its arithmetic; LLM-Adapters' code uses float32 on any base"
    )

    def numbers(self, host: Host, fan_in: int, fan_out: int) -> int:
        b = self.bottleneck(fan_in)
        return b * (fan_in + fan_out) + self.bias * (b + fan_out)

    def network(self, host: Host, shared: nn.Module | None) -> Inserted:
        fan_in, fan_out = self.widths(host)
        return Bottleneck(
            host, fan_in, fan_out, self.bottleneck(fan_in), self.activation, self.scale, self.dropout, self.bias, self.init,
            self.how(), self.drop, shared, self.precision, self.outer,
        )  # fmt: skip


@settings
class SublayerBottleneck(BottleneckMethod, SublayerMethod):
    """The same with any insertion."""


class Bottleneck(Inserted):
    """`s g(U f(D dropout(h) + d) + u)`.

    Args:
        host: a linear layer or a module.
        fan_in: width of h.
        fan_out: width of the result.
        size: the bottleneck b; D `[b, fan_in]`, U `[fan_out, b]`.
        activation: f.
        scale: s, or 'learned' for a trained scalar that starts at 1.
        dropout: on h.
        bias: whether D and U have biases d, u.
        init: 'zero' starts as the base (D Kaiming-uniform, U = 0); 'bert' draws both from N(0, 0.02^2); 'linear' all from
            U(-1/sqrt(n), 1/sqrt(n)), n the columns, as nn.Linear and so the code of PeftCD.
        how: the insertion.
        drop: how many of the first blocks a training step may skip.
        shared: the method's state that all its adapters use.
        precision: of the arithmetic: 'input' for the activations' own, 'float32' also on half-precision ones and under autocast.
        outer: g.
    """

    def __init__(
        self,
        host: Host,
        fan_in: int,
        fan_out: int,
        size: int,
        activation: Activation = "relu",
        scale: float | Literal["learned"] = 1.0,
        dropout: float = 0.0,
        bias: bool = False,
        init: Start = "zero",
        how: Insertion = BEHIND,
        drop: int = 0,
        shared: nn.Module | None = None,
        precision: Precision = "input",
        outer: Outer = "identity",
    ):
        super().__init__(host, how, scale, drop, shared)
        self.activation, self.dropout = ACTIVATIONS[activation], dropout
        self.precision, self.outer = precision, ACTIVATIONS[outer]
        self.channels_first = host.kind == "module" and _convolves(host.layer, fan_in)
        self.D = nn.Parameter(torch.empty(size, fan_in))
        self.U = nn.Parameter(torch.zeros(fan_out, size))
        self.d = nn.Parameter(torch.zeros(size)) if bias else None
        self.u = nn.Parameter(torch.zeros(fan_out)) if bias else None
        if init == "bert":
            nn.init.normal_(self.D, std=0.02)
            nn.init.normal_(self.U, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.D, a=math.sqrt(5))
        if init == "linear":
            for tensor, columns in ((self.U, size), (self.d, fan_in), (self.u, size)):
                if tensor is not None:
                    nn.init.uniform_(tensor, -(columns**-0.5), columns**-0.5)

    def bypass(self, h: Tensor) -> Tensor:
        if self.precision == "input":
            return super().bypass(h)
        with torch.autocast(h.device.type, enabled=False) if autocasting(h) else nullcontext():
            return super().bypass(h.to(torch.promote_types(h.dtype, torch.float32))).to(h.dtype)

    def network(self, h: Tensor) -> Tensor:
        if (
            self.channels_first and h.dim() == 4
        ):  # [batch, channels, height, width]: the maps are convolutions of one pixel
            return self._network(h.movedim(1, -1)).movedim(-1, 1)
        return self._network(h)

    def _network(self, h: Tensor) -> Tensor:
        z = self.activation(affine(F.dropout(h, self.dropout, self.training), self.D, self.d))
        return self.outer(affine(z, self.U, self.u))


def _convolves(module: nn.Module, width: int) -> bool:
    """Whether a block's activations of this width are what its convolutions take, as ConvNeXt's and ResNet's are."""
    return any(isinstance(m, nn.Conv2d) and m.in_channels == width for m in module.modules())


def affine(h: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """`W h + b` in h's precision."""
    return F.linear(h, W.to(h.dtype), None if b is None else b.to(h.dtype))


def inside_a_block(host: Host) -> str | None:
    """Why a method of a model's final features cannot sit here; None outside the blocks."""
    return None if host.index is None else "it is for final features, and this is inside a block"
