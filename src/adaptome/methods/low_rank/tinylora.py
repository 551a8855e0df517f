"""TinyLoRA: a handful of trained numbers between the leading singular vectors of each weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank
from adaptome.methods.low_rank.lora import leading


class Vectors(nn.Module):
    """v of every group of layers, and the group each layer is in."""

    def __init__(self, method: TinyLoRA, hosts: Sequence[Host]):
        super().__init__()
        count = method.groups(len(hosts))
        together = max(1, len(hosts) // count)
        self.group = {host.name: min(i // together, count - 1) for i, host in enumerate(hosts)}
        self.v = nn.ParameterList([nn.Parameter(torch.zeros(method.n)) for _ in range(count)])


@register(
    "tinylora",
    subcategory="low-rank, singular vectors",
    export="low-rank",
    source="Morris et al. 2026, arXiv:2602.04118",
)
class TinyLoRA(Method):
    r"""TinyLoRA: a handful of trained numbers between the leading singular vectors of each weight.

        dW = B (sum_i v_i P_i) A,    B A = the r leading singular triplets of W

    when        reinforcement learning, for which a few dozen numbers can do; thousands of adapters
    shapes      A [r, in], B [out, r] of W, with the roots of the singular values; P_i [r, r] frozen, n of them a layer; v [n], shared by the
                layers of a group
    init        P ~ N(0, 1/r), as in PEFT, from the seed (not stored: rebuilt when loading), v = 0: starts as the base
    tie         0: every layer has its own v; 1: one for all; between, consecutive layers share
    parameters  n per group: 4,096 for LLaMA-2-7B, q and v, n = 64; 13 in all with n = 13, tie = 1
    merge       exact; export: peft-lora, exact
    source      Morris et al. 2026, arXiv:2602.04118
    """

    r: int = option(2, at_least=1, help="singular vectors of each weight; costs nothing")
    n: int = option(64, at_least=1, help="trained numbers of a group")
    tie: float = option(0.0, at_least=0, at_most=1, help="share of the layers that get no v of their own")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    @classmethod
    def size_setting(cls) -> str:
        return "n"

    def factorises(self) -> bool:
        return True

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and self.r > min(host.fan_in, host.fan_out):
            reason = f"r = {self.r} is above its rank, {min(host.fan_in, host.fan_out)}"
        return reason

    def groups(self, layers: int) -> int:
        """How many v there are."""
        return max(1, round(layers * (1 - self.tie)))

    def parameters(self, host: Host) -> int:
        return 0

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Vectors(self, hosts)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return self.groups(len(hosts)) * self.n

    def adapter(self, host: Host, shared: nn.Module | None = None) -> TinyLoRAAdapter:
        return TinyLoRAAdapter(self, host, shared)


class TinyLoRAAdapter(LowRank):
    """The frozen factors of one layer; what it trains is v of its group."""

    rebuilt = ("A", "B", "P")

    def __init__(self, method: TinyLoRA, host: Host, shared: nn.Module | None):
        super().__init__(host, dropout=method.dropout, shared=shared)
        W = host.weight()
        A, B = leading(W.to(torch.promote_types(W.dtype, torch.float32)), method.r)
        self.register_buffer("A", A)
        self.register_buffer("B", B)
        self.register_buffer("P", torch.randn(*host.lead, method.n, method.r, method.r) * method.r**-0.5)

    def factors(self) -> tuple[Tensor, Tensor]:
        v = self.shared.v[self.shared.group[self.host.name]]
        v = v.to(self.get_buffer("P").device)
        A, B, P = (self.get_buffer(name).to(v.dtype) for name in "ABP")
        return torch.einsum("n,...nij->...ij", v, P) @ A, B
