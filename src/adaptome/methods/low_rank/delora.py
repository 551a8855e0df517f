"""DeLoRA: a low-rank update whose directions have length one, and one trained number for its strength."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank, kaiming

#: lengths below this count as this
SHORTEST = 1e-4


@register(
    "delora",
    subcategory="low-rank, normalised",
    export="low-rank",
    source="Bini et al. 2025, arXiv:2503.18225",
)
class DeLoRA(Method):
    r"""DeLoRA: a low-rank update whose directions have length one, and one trained number for its strength.

        dW = (lambda / r) sum_i b_i a_i^T / (||b_i|| ||a_i||) diag(c),    c the lengths of W's columns

    when        a learning rate too high must not drive the model away: the update's size is bounded by lambda
    shapes      A [r, in] with rows a_i, B [out, r] with columns b_i, lambda [1]; c [in], of the base
    init        A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, lambda as set: starts as the base. Lengths below 1e-4 count as 1e-4, so
                that B = 0 has an update, 0, and a gradient
    parameters  r (in + out) + 1 per layer: 4,194,368 for LLaMA-2-7B, q and v, r = 8
    merge       exact; export: peft-lora, exact
    source      Bini et al. 2025, arXiv:2503.18225; B = 0 and the shortest length as in PEFT
    """

    r: int = option(8, at_least=1, help="rank of the update")
    strength: float = option(15.0, help="the start of lambda, the bound of the update")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def parameters(self, host: Host) -> int:
        return (self.r * (host.fan_in + host.fan_out) + 1) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> DeLoRAAdapter:
        return DeLoRAAdapter(self, host)


class DeLoRAAdapter(LowRank):
    """A, B and lambda of one layer."""

    rebuilt = ("c",)

    def __init__(self, method: DeLoRA, host: Host):
        super().__init__(host, 1 / method.r, method.dropout)
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))
        self.lambda_ = nn.Parameter(torch.full((*host.lead, 1), method.strength, dtype=torch.float64))
        W = host.weight()
        self.register_buffer("c", W.to(torch.promote_types(W.dtype, torch.float32)).norm(dim=-2))

    def factors(self) -> tuple[Tensor, Tensor]:
        c: Any = self.c
        along, across = (
            v.norm(dim=d, keepdim=True).clamp_min(SHORTEST) for v, d in ((self.A, -1), (self.B, -2))
        )
        A = self.A / along * c.to(self.A.dtype)[..., None, :]
        return A, self.B * (self.lambda_[..., None] / across)
