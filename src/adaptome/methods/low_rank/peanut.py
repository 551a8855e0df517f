"""PEANuT: the factor of a low-rank update is a small network of the frozen weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank, kaiming

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@register(
    "peanut",
    subcategory="low-rank, weight-aware",
    export="low-rank",
    source="Zhong et al. 2024, arXiv:2410.01870",
)
class PEANuT(Method):
    r"""PEANuT: the factor of a low-rank update is a small network of the frozen weight.

        dW = s B H,    H = h_0 + D_1(... D_d(E_d ... E_1(h_0))),    h_0 = act(A W)

    when        LoRA's count is too much, and the weight itself says where an update should go
    shapes      W [out, in] frozen; A [r, out], B [out, r]; E_i, D_i [r, r], `depth` of each: h_i = act(E_i h_{i-1}), and back
                g_{i-1} = h_{i-1} + act(D g_i) from g_d = h_d; H = g_0 [r, in]
    init        A, E, D ~ U(-1/sqrt(w), 1/sqrt(w)) over their w columns, B = 0: starts as the base
    parameters  2 r out + 2 depth r^2 per layer: 16,777,216 for LLaMA-2-7B, q and v, r = 32, depth 0
    forward     the network runs over W once a call, out r in products; then as LoRA with H for A
    composition W is the base's own, whatever other adapters make of it
    merge       exact; export: peft-lora, exact
    source      Zhong et al. 2024, arXiv:2410.01870
    """

    r: int = option(32, at_least=1, help="rank of the update")
    depth: int = option(0, at_least=0, help="layers of r numbers on either side of the network")
    scale: float = option(1.0, help="s")
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = option("relu", help="act")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def parameters(self, host: Host) -> int:
        return (2 * self.r * host.fan_out + 2 * self.depth * self.r**2) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PEANuTAdapter:
        return PEANuTAdapter(self, host)


class PEANuTAdapter(LowRank):
    """The network of one layer."""

    def __init__(self, method: PEANuT, host: Host):
        super().__init__(host, method.scale, method.dropout)
        r, depth = method.r, method.depth
        self.act = ACTIVATIONS[method.activation]
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, r, host.fan_out)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, r))
        self.E = nn.Parameter(kaiming(torch.empty(depth, *host.lead, r, r))) if depth else None
        self.D = nn.Parameter(kaiming(torch.empty(depth, *host.lead, r, r))) if depth else None

    def factors(self) -> tuple[Tensor, Tensor]:
        H = self.act(self.A @ self.host.weight().to(self.A.dtype))
        before = []
        for E in () if self.E is None else self.E:
            before.append(H)
            H = self.act(E @ H)
        for D in () if self.D is None else self.D:
            H = before.pop() + self.act(D @ H)
        return H, self.B
