"""HRA: every layer's input is mirrored by a few trained Householder reflections."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host, autocasting
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import kaiming
from adaptome.forms.reparametrization import Reparametrization


@register(
    "hra",
    subcategory="orthogonal, reflections",
    export="delta",
    hosts=("linear", "conv", "experts", "parameter"),
    source="Yuan et al. 2024, arXiv:2405.17484",
)
class HRA(Method):
    r"""HRA: every layer's input is mirrored by a few trained Householder reflections.

        W' = W H_1 ... H_r,    H_i = I - 2 u_i u_i^T / ||u_i||^2;    y = W (H_1 ... H_r x)

    when        the update is to keep lengths and angles at the price of a LoRA of half its rank
    shapes      U [in, r], whose columns are u_i
    init        u_i ~ U(-c, c), whatever c, in equal pairs, whose reflections cancel: starts as the base; r is even
    gram_schmidt  the u_i are made orthonormal first, so H_1 ... H_r = I - 2 U U^T. That is never the identity: u_i are drawn apart, and
                the model does not start as the base
    parameters  r in per layer: 8,388,608 for LLaMA-2-7B, q and v, r = 32
    forward     H_1 ... H_r = I - U T U^T with T^-1 = triu(U^T U, 1) + diag(U^T U) / 2, so 2 in r products a token
    penalty     loss + orthogonality * sum over layers of ||I - U^T U||^2 with normalised columns: the paper's middle way between both
    merge       exact
    source      Yuan et al. 2024, arXiv:2405.17484; the form of T: Joffrain et al. 2006, ACM TOMS 32(2)
    """

    r: int = option(8, at_least=1, help="reflections; even without gram_schmidt")
    gram_schmidt: bool = option(False, help="make the directions orthonormal first")
    orthogonality: float = option(0.0, at_least=0, help="weight of the penalty on directions that are not")

    def validate(self) -> None:
        if self.r % 2 and not self.gram_schmidt:
            raise MethodError(
                f"hra: r = {self.r} is odd: reflections start in pairs that cancel. Take {self.r + 1}."
            )

    def admits(self, host: Host) -> str | None:
        if host.kind in self.hosts and self.gram_schmidt and self.r > host.fan_in:
            return f"r = {self.r} directions cannot be orthonormal among its {host.fan_in} inputs"
        return super().admits(host)

    def parameters(self, host: Host) -> int:
        return self.r * host.fan_in * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> HRAAdapter:
        return HRAAdapter(self, host)

    def penalty(self, adapters: Mapping[str, Any], shared: nn.Module | None) -> Tensor | None:
        """`orthogonality * sum ||I - U^T U||^2`."""
        if not self.orthogonality or self.gram_schmidt:
            return None
        return self.orthogonality * torch.stack([a.overlap().cpu() for a in adapters.values()]).sum()


class HRAAdapter(Reparametrization):
    """U of one layer."""

    def __init__(self, method: HRA, host: Host):
        super().__init__(host)
        self.fast, self.gram_schmidt = host.kind == "linear", method.gram_schmidt
        directions = method.r if method.gram_schmidt else method.r // 2
        U = kaiming(torch.empty(*host.lead, host.fan_in, directions))
        self.U = nn.Parameter(U if method.gram_schmidt else U.repeat_interleave(2, -1))

    def pair(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`P [*, in, r]` and `U [*, in, r]` with `H_1 ... H_r = I - P U^T`; in at least float32."""
        U = self.U.to(torch.promote_types(self.U.dtype, torch.float32))
        if self.gram_schmidt:
            Q, _ = torch.linalg.qr(U)
            return (2 * Q).to(dtype), Q.to(dtype)
        with torch.autocast(U.device.type, enabled=False) if autocasting(U) else nullcontext():
            gram = U.mT @ U
        inverse = gram.triu(1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
        # P T^-1 = U
        P = torch.linalg.solve_triangular(inverse, U, upper=True, left=False)
        return P.to(dtype), U.to(dtype)

    def overlap(self) -> Tensor:
        """`||I - U^T U||^2` of the normalised columns."""
        U = F.normalize(self.U, dim=-2)
        eye = torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
        return (eye - U.mT @ U).square().sum()

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        P, U = self.pair(x.dtype)
        y: Tensor = frozen(x - self.strength * F.linear(F.linear(x, U.mT), P), *args, **kwargs)
        return y

    def weight(self, W: Tensor) -> Tensor:
        P, U = self.pair(W.dtype)
        return W - (W @ P) @ U.mT
