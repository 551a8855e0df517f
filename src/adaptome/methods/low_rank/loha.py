"""LoHa: the update is the entrywise product of two low-rank matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.delta import run_changed
from adaptome.forms.low_rank import LowRank, kaiming


@register(
    "loha",
    subcategory="Hadamard product of low ranks",
    export="low-rank",
    source="Hyeon-Woo et al. 2021 (FedPara), arXiv:2108.06098; Yeh et al. 2023 (LyCORIS), arXiv:2309.14859",
)
class LoHa(Method):
    r"""LoHa: the update is the entrywise product of two low-rank matrices.

        dW = s (B1 A1) * (B2 A2),    s = alpha / r;    the same as s B A with r^2 rows A[(j, k)] = A1[j] * A2[k], B likewise

    when        updates of high rank at LoRA's size, mostly for image generation
    shapes      A1, A2 [r, in], B1, B2 [out, r]; rank up to r^2
    init        A2 = 0, the others Kaiming-uniform(a = sqrt 5): starts as the base
    parameters  2 r (in + out) per layer: 8,388,608 for LLaMA-2-7B, q and v, r = 8
    forward     as B A while that costs less than a dense update's, 3 r^2 (in + out) < in out a token with the backward; else
                linear layers form W + dW, again in the backward, so that no [out, in] matrix is kept
    merge       exact; export: peft-loha; peft-lora, exact, of rank r^2 or the layer's smaller side, or less by SVD
    source      Hyeon-Woo et al. 2021 (FedPara), arXiv:2108.06098; Yeh et al. 2023 (LyCORIS), arXiv:2309.14859
    """

    r: int = option(8, at_least=1, help="rank of each of the two matrices")
    alpha: float = option(8.0, help="the update is scaled by alpha / r")

    def parameters(self, host: Host) -> int:
        return 2 * self.r * (host.fan_in + host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return LoHaAdapter(self, host)


class LoHaAdapter(LowRank):
    """The two pairs of factors of one layer."""

    A1: nn.Parameter
    A2: nn.Parameter
    B1: nn.Parameter
    B2: nn.Parameter

    makes_factors = True

    def __init__(self, method: LoHa, host: Host):
        super().__init__(host, method.alpha / method.r)
        wide = 3 * method.r**2 * (host.fan_in + host.fan_out) >= host.fan_in * host.fan_out
        self.dense = wide and host.kind == "linear" and not host.packed
        for name in ("1", "2"):
            A = torch.empty(*host.lead, method.r, host.fan_in)
            B = torch.empty(*host.lead, host.fan_out, method.r)
            self.register_parameter("A" + name, nn.Parameter(A.zero_() if name == "2" else kaiming(A)))
            self.register_parameter("B" + name, nn.Parameter(kaiming(B)))

    def factors(self) -> tuple[Tensor, Tensor]:
        A = self.A1[..., :, None, :] * self.A2[..., None, :, :]
        B = self.B1[..., :, None] * self.B2[..., None, :]
        return A.flatten(-3, -2), B.flatten(-2)

    def delta(self) -> Tensor:
        return _Hadamard.apply(self.B1, self.A1, self.B2, self.A2) * self.scale

    def changed(self, name: str, value: Tensor) -> Tensor:
        factors = (t.to(value.dtype) for t in (self.B1, self.A1, self.B2, self.A2))
        return value + self.scale * _Hadamard.apply(*factors)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # with fewer tokens than half the columns, the factors are cheaper at any rank of use
        if not self.dense or 2 * x.numel() // x.shape[-1] <= x.shape[-1]:
            return super().forward(frozen, x, *args, **kwargs)
        return run_changed(self, frozen, x)


class _Hadamard(torch.autograd.Function):
    """`(B1 A1) * (B2 A2)`, saving the factors and not the products."""

    @staticmethod
    def forward(ctx: Any, B1: Tensor, A1: Tensor, B2: Tensor, A2: Tensor) -> Tensor:
        ctx.save_for_backward(B1, A1, B2, A2)
        return (B1 @ A1).mul_(B2 @ A2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        B1, A1, B2, A2 = ctx.saved_tensors
        G1 = grad * (B2 @ A2)
        G2 = grad * (B1 @ A1)
        return G1 @ A1.mT, B1.mT @ G1, G2 @ A2.mT, B2.mT @ G2
