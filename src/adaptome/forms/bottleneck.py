"""`U f(D x)`: the small network inside bottleneck adapters, on a linear layer or around a whole module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter
from adaptome.core.errors import HostError
from adaptome.core.hosts import Host, first_input

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "identity"]
Precision = Literal["input", "float32"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class Bottleneck(Adapter):
    """Base of bottleneck adapters: `s U f(D dropout(h) + d) + s u`.

    Args:
        host: a linear layer or a module.
        fan_in: width of h.
        fan_out: width of the result.
        size: the bottleneck b; D `[b, fan_in]`, U `[fan_out, b]`.
        activation: f.
        scale: s, or 'learned' for a trained scalar that starts at 1.
        dropout: on h.
        bias: whether D and U have biases d, u.
        init: 'zero' starts as the base (D Kaiming-uniform, U = 0); 'bert' draws both from N(0, 0.02^2).
        precision: of the arithmetic: 'input' for the activations' own, 'float32' also on half-precision ones and under autocast.
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
        init: Literal["zero", "bert"] = "zero",
        precision: Precision = "input",
    ):
        super().__init__(host)
        self.activation, self.dropout = ACTIVATIONS[activation], dropout
        self.precision = precision
        self.D = nn.Parameter(torch.empty(size, fan_in))
        self.U = nn.Parameter(torch.zeros(fan_out, size))
        self.d = nn.Parameter(torch.zeros(size)) if bias else None
        self.u = nn.Parameter(torch.zeros(fan_out)) if bias else None
        if init == "bert":
            nn.init.normal_(self.D, std=0.02)
            nn.init.normal_(self.U, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.D, a=math.sqrt(5))
        if scale == "learned":
            self.s: nn.Parameter | float = nn.Parameter(torch.ones(()))
        else:
            self.s = scale

    def bypass(self, h: Tensor) -> Tensor:
        """`s (U f(D dropout(h) + d) + u)`, in the activations' type."""
        if self.precision == "input":
            return self._bypass(h)
        with torch.autocast(h.device.type, enabled=False):
            return self._bypass(h.to(torch.promote_types(h.dtype, torch.float32))).to(h.dtype)

    def _bypass(self, h: Tensor) -> Tensor:
        h = F.dropout(h, self.dropout, self.training)
        z = self.activation(F.linear(h, self.D.to(h.dtype), None if self.d is None else self.d.to(h.dtype)))
        out = F.linear(z, self.U.to(h.dtype), None if self.u is None else self.u.to(h.dtype))
        return out * (self.s.to(h.dtype) if isinstance(self.s, Tensor) else self.s)

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The activations the layer was called with."""
        return first_input(self.host.layer, args, kwargs)


def hidden(output: Any) -> Tensor:
    """The activations in a module's output: itself, or a tuple's first element.

    Raises:
        HostError: for any other output.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise HostError(
        f"the layer returns a {type(output).__name__}: adapters need a tensor, or a tuple that begins with one."
    )


def with_hidden(output: Any, value: Tensor) -> Any:
    """The output with its activations replaced."""
    return value if isinstance(output, Tensor) else (value, *output[1:])


def parameter_count(fan_in: int, fan_out: int, size: int, bias: bool, learned_scale: bool) -> int:
    """`b (in + out)`, with `b + out` for biases and 1 for a learned scale."""
    return size * (fan_in + fan_out) + bias * (size + fan_out) + learned_scale
