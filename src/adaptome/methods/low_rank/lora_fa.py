"""LoRA-FA: LoRA with A frozen, so that a layer saves r numbers a token for the backward instead of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank, kaiming


@register(
    "lora-fa",
    subcategory="low-rank",
    export="low-rank",
    source="Zhang et al. 2023, arXiv:2308.03303, section 3",
)
class LoRAFA(Method):
    r"""LoRA-FA: LoRA with A frozen, so that a layer saves r numbers a token for the backward instead of its input.

        y = W x + s B A x,    s = alpha / r

    when        the memory of activations is the limit: the inputs of adapted layers are not kept
    shapes      W [out, in] and A [r, in] frozen; B [out, r]; x [..., in] -> y [..., out]
    init        A ~ U(-1/sqrt(in), 1/sqrt(in)) from the seed (not stored: rebuilt when loading), B = 0
    parameters  r out per layer: 2,097,152 for LLaMA-2-7B, q and v, r = 8
    merge       exact; export: peft-lora, exact
    source      Zhang et al. 2023, arXiv:2308.03303, section 3
    """

    r: int = option(8, at_least=1, help="rank of the update")
    alpha: float = option(16.0, help="the update is scaled by alpha / r")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def parameters(self, host: Host) -> int:
        return self.r * host.fan_out * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return LoRAFAAdapter(self, host)


class LoRAFAAdapter(LowRank):
    """B of one layer, and the A that its seed rebuilds."""

    rebuilt = ("A",)

    def __init__(self, method: LoRAFA, host: Host):
        super().__init__(host, method.alpha / method.r, method.dropout)
        self.register_buffer("A", kaiming(torch.empty(*host.lead, method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("A"), self.B
