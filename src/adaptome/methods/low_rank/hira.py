"""HiRA: each weight is multiplied, entry by entry, by a trained low-rank matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import kaiming
from adaptome.forms.reparametrization import Reparametrization


@register(
    "hira",
    subcategory="low-rank, Hadamard product",
    export="delta",
    source="Huang et al. 2025, ICLR 2025 (openreview TwJrTz9cRS)",
)
class HiRA(Method):
    r"""HiRA: each weight is multiplied, entry by entry, by a trained low-rank matrix.

        W' = W * (1 + B A)

    when        updates of high rank at LoRA's size: the update has up to r times the rank of W
    shapes      W [out, in] frozen; A [r, in], B [out, r]
    init        A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0: starts as the base
    parameters  r (in + out) per layer: 16,777,216 for LLaMA-2-7B, q and v, r = 32
    forward     reads W': the product has no form by the factors that is cheaper than r products with W
    merge       exact; export: peft-lora by SVD, its error told
    source      Huang et al. 2025, ICLR 2025 (openreview TwJrTz9cRS)
    """

    r: int = option(32, at_least=1, help="rank of the factor")

    def parameters(self, host: Host) -> int:
        return self.r * (host.fan_in + host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> HiRAAdapter:
        return HiRAAdapter(self, host)


class HiRAAdapter(Reparametrization):
    """A and B of one layer."""

    def __init__(self, method: HiRA, host: Host):
        super().__init__(host)
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))

    def weight(self, W: Tensor) -> Tensor:
        return torch.addcmul(W, W, self.B.to(W.dtype) @ self.A.to(W.dtype))
