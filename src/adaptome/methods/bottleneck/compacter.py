"""Compacter: bottlenecks whose matrices are sums of Kronecker products, the small factors shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.forms.bottleneck import ACTIVATIONS, Activation
from adaptome.forms.hypercomplex import phm
from adaptome.forms.insertion import BEHIND, Inserted, InsertedMethod, Insertion


@register(
    "compacter", category="hybrid", subcategory="bottleneck adapter, Kronecker products", merge="none", export="none",
    inference_overhead="extra modules", hosts=("linear", "module"), default_targets=("o", "down"),
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04647",
)  # fmt: skip
class Compacter(InsertedMethod):
    r"""Compacter: bottlenecks whose matrices are sums of Kronecker products, the small factors shared by all layers.

        z = f(x);  y = z + s (U g(D z + d) + u),    D = sum_k A_k (x) (s_k t_k^T),  U = sum_k A_k (x) (s'_k t'_k^T)

    when        bottlenecks at a tenth of their size or less
    shapes      A_k [n, n] for k = 1..n, of all layers and both matrices; s_k [b/n, rank], t_k [rank, d/n], U's likewise
    init        'zero': U's s' = 0: starts as the base; A ~ N(0, 1/n), the rest normal so that D has Kaiming-uniform's variance;
                'paper': A ~ N(0, 0.01^2), s and t Glorot-uniform: near the base
    forward     D z in O(n d + n^3) a token, no [b, d] matrix
    placement   behind the last maps of attention and MLP; Compacter++ is targets='down'
    parameters  2 rank (b + d) + b + d per layer, and n^3 in all: 57,088 for RoBERTa-base, b = 24, n = 4
    merge       none: it is not linear
    source      Karimi Mahabadi et al. 2021, arXiv:2106.04647
    """

    size: int = option(24, at_least=1, help="the bottleneck b; terms must divide it")
    terms: int = option(4, at_least=1, help="n, the number of Kronecker products; it must divide the width")
    rank: int = option(1, at_least=1, help="of every product's second factor")
    activation: Activation = option("gelu", help="g")
    bias: bool = option(True, help="biases in the bottleneck")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    init: Literal["zero", "paper"] = option("zero", help="'zero' starts as the base")

    def how(self) -> Insertion:
        return BEHIND

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason:
            return reason
        d, n = host.fan_out, self.terms
        if d % n or self.bottleneck(d) % n:
            return f"terms = {n} does not divide the width {d} and the bottleneck {self.bottleneck(d)}"
        return None

    def numbers(self, host: Host, fan_in: int, fan_out: int) -> int:
        b = self.bottleneck(fan_in)
        return self.rank * (2 * b + fan_in + fan_out) + self.bias * (b + fan_out)

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Rule(self)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return int(self.terms**3)

    def network(self, host: Host, shared: nn.Module | None) -> Inserted:
        return CompacterNetwork(self, host, shared)


class Rule(nn.Module):
    """The matrices A_k, one stack for the model."""

    def __init__(self, method: Compacter):
        super().__init__()
        n = method.terms
        std = n**-0.5 if method.init == "zero" else 0.01
        self.A = nn.Parameter(torch.randn(n, n, n) * std)


class CompacterNetwork(Inserted):
    """The factors of one layer."""

    def __init__(self, method: Compacter, host: Host, shared: nn.Module | None):
        super().__init__(host, method.how(), method.scale, method.drop, shared)
        d, n, rank = host.fan_out, method.terms, method.rank
        b = method.bottleneck(d)
        self.activation, self.dropout = ACTIVATIONS[method.activation], method.dropout
        self.S, self.T = factors(n, rank, b, d, method.init)
        self.S_up, self.T_up = factors(n, rank, d, b, method.init)
        if method.init == "zero":
            nn.init.zeros_(self.S_up)
        self.d = nn.Parameter(torch.zeros(b)) if method.bias else None
        self.u = nn.Parameter(torch.zeros(d)) if method.bias else None

    def network(self, h: Tensor) -> Tensor:
        A = self.shared.A
        z = phm(F.dropout(h, self.dropout, self.training), A, self.S, self.T)
        z = self.activation(z if self.d is None else z + self.d.to(z.dtype))
        y = phm(z, A, self.S_up, self.T_up)
        return y if self.u is None else y + self.u.to(y.dtype)


def factors(n: int, rank: int, out: int, width: int, init: str) -> tuple[nn.Parameter, nn.Parameter]:
    """S `[n, rank, out/n]` and T `[n, rank, width/n]`."""
    S, T = torch.randn(n, rank, out // n), torch.randn(n, rank, width // n)
    if init == "paper":
        for k in range(n):
            nn.init.xavier_uniform_(S[k])
            nn.init.xavier_uniform_(T[k])
        return nn.Parameter(S), nn.Parameter(T)
    return nn.Parameter(S * rank**-0.5), nn.Parameter(T * (3 * width) ** -0.5)
