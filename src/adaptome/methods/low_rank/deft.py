"""DEFT: a trained subspace of a layer's outputs is taken away, and filled anew."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.reparametrization import Reparametrization


@register(
    "deft",
    subcategory="low-rank, projection",
    export="delta",
    hosts=("linear", "conv", "experts", "parameter"),
    source="Kumar et al. 2025, arXiv:2509.22793",
)
class DEFT(Method):
    r"""DEFT: a trained subspace of a layer's outputs is taken away, and filled anew.

        W' = W - Q T^T W + s Q R,    'relu': Q = P, T = max(P, 0);    'qr': Q = T = the orthonormal factor of P

    when        image generation that has to learn a subject without forgetting the rest
    shapes      P [out, r], R [r, in]
    init        P ~ N(0, 0.02^2), R = T^T W / s: starts as the base
    fill        False: no R, W' = W - Q T^T W (PaRa); the model does not start as the base
    parameters  r (in + out) per layer, r out without R: 4,194,304 for LLaMA-2-7B, q and v, r = 8
    forward     linear layers: y + (s R x - T^T (y - bias)) Q^T, so W' is never built
    merge       exact
    source      Kumar et al. 2025, arXiv:2509.22793; PaRa: Chen et al. 2024, arXiv:2406.05641
    """

    r: int = option(8, at_least=1, help="dimensions of the subspace")
    projection: Literal["relu", "qr"] = option("relu", help="how the subspace is made of P")
    fill: bool = option(True, help="train R")
    scale: float = option(1.0, above=0, help="s")
    dropout: float = option(0.0, at_least=0, below=1, help="on the input of R; linear layers only")

    def admits(self, host: Host) -> str | None:
        if host.kind in self.hosts and self.r > host.fan_out:
            return f"r = {self.r} is above its {host.fan_out} outputs"
        return super().admits(host)

    def parameters(self, host: Host) -> int:
        return self.r * (host.fan_out + self.fill * host.fan_in) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> DEFTAdapter:
        return DEFTAdapter(self, host)


class DEFTAdapter(Reparametrization):
    """P and R of one layer."""

    def __init__(self, method: DEFT, host: Host):
        super().__init__(host)
        self.projection, self.scale, self.dropout = method.projection, method.scale, method.dropout
        self.fast = host.kind == "linear"
        self.P = nn.Parameter(torch.randn(*host.lead, host.fan_out, method.r) * 0.02)
        self.R = None
        if method.fill:
            W = host.weight()
            exact = torch.promote_types(W.dtype, torch.float32)
            _, T = self.subspace(exact)
            self.R = nn.Parameter((T.detach().to(W.device).mT @ W.to(exact)) / method.scale)

    def subspace(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Q and T, each `[*, out, r]`; made in at least float32."""
        P = self.P.to(torch.promote_types(self.P.dtype, torch.float32))
        if self.projection == "relu":
            return P.to(dtype), P.relu().to(dtype)
        Q = torch.linalg.qr(P)[0].to(dtype)
        return Q, Q

    def weight(self, W: Tensor) -> Tensor:
        Q, T = self.subspace(W.dtype)
        filled = -(T.mT @ W)
        if self.R is not None:
            filled = filled + self.scale * self.R.to(W.dtype)
        return W + Q @ filled

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        Q, T = self.subspace(y.dtype)
        bias = frozen.bias()
        z = -((y if bias is None else y - bias.to(y.dtype)) @ T)
        if self.R is not None:
            x = F.dropout(x.to(y.dtype), self.dropout, self.training)
            z = z + self.scale * F.linear(x, self.R.to(y.dtype))
        return torch.add(y, F.linear(z, Q), alpha=self.strength)
