"""Uni-LoRA: every number of every layer's LoRA is one of a few trained ones, which one being drawn once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank


class Numbers(nn.Module):
    """The trained numbers, and for each layer which of them its factors are made of."""

    rebuilt = ("scales",)

    def __init__(self, method: UniLoRA, hosts: Sequence[Host]):
        super().__init__()
        self.theta = nn.Parameter(torch.empty(method.n).uniform_(-method.bound, method.bound))
        uses = torch.zeros(method.n, dtype=torch.int64)
        if not self.theta.is_meta:
            for host in hosts:
                for index in drawn(method, host):
                    uses += torch.bincount(index.flatten(), minlength=method.n)
        self.register_buffer(
            "scales", uses.clamp_min(1).to(torch.promote_types(hosts[0].dtype, torch.float32)).rsqrt()
        )


def drawn(method: UniLoRA, host: Host) -> tuple[Tensor, Tensor]:
    """Which numbers A `[*, r, in]` and B `[*, out, r]` of a layer are made of."""
    device = torch.get_default_device()
    generator = None
    if device.type != "meta":
        generator = torch.Generator().manual_seed(method.projection_seed + _number(host.name))
    shapes = (method.r, host.fan_in), (host.fan_out, method.r)
    a, b = (torch.randint(method.n, (*host.lead, *shape), generator=generator) for shape in shapes)
    return a, b


def _number(name: str) -> int:
    """One number for a name, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


@register(
    "uni-lora",
    subcategory="low-rank, shared numbers",
    export="low-rank",
    identity_at_init=False,
    budget_setting="n",
    source="Li et al. 2025, arXiv:2506.00799",
)
class UniLoRA(Method):
    r"""Uni-LoRA: every number of every layer's LoRA is one of a few trained ones, which one being drawn once.

        (A, B of all layers as one vector) = P theta,    each row of P one entry at a drawn place, 1 / sqrt(ones of its column)

    when        the size of a whole adapter is to be a free number, far below LoRA's
    shapes      theta [n] for the whole model; A [r, in], B [out, r] of a layer looked up in it; P's columns have length one and are
                orthogonal, so that distances in theta are those of the factors
    init        theta ~ U(-bound, bound): the update starts small, but not at 0; P from `projection_seed`, not stored
    parameters  n in all: 524,288 for LLaMA-2-7B, whatever the targets
    merge       exact; export: peft-lora, exact
    source      Li et al. 2025, arXiv:2506.00799
    """

    n: int = option(524_288, at_least=1, help="trained numbers of the whole model")
    r: int = option(4, at_least=1, help="rank of the layers' updates; costs nothing")
    bound: float = option(0.02, above=0, help="of the numbers at the start")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    projection_seed: int = option(42, help="draws which number goes where")

    def parameters(self, host: Host) -> int:
        return 0

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Numbers(self, hosts)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return self.n

    def adapter(self, host: Host, shared: nn.Module | None = None) -> UniLoRAAdapter:
        return UniLoRAAdapter(self, host, shared)


class UniLoRAAdapter(LowRank):
    """Where the numbers of one layer are."""

    rebuilt = ("a", "b")

    def __init__(self, method: UniLoRA, host: Host, shared: nn.Module | None):
        super().__init__(host, dropout=method.dropout, shared=shared)
        a, b = drawn(method, host)
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.get_buffer("a"), self.get_buffer("b")
        theta = (self.shared.theta * self.shared.scales.to(self.shared.theta.dtype)).to(a.device)
        return theta[a], theta[b]
