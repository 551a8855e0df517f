"""Lily: layers share their down-projections with neighbours and choose among up-projections that all of their kind share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import group_of, kaiming


class Interconnected(nn.Module):
    """A of every `stride` neighbours, B of every kind of layers, and each layer's G, which moves once B has."""

    def __init__(self, method: Lily, hosts: Sequence[Host]):
        super().__init__()
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.G = nn.ParameterList()
        self.place: dict[str, tuple[str, int]] = {}
        for key, host in method.places(hosts):
            self.place[host.name], group = (key, len(self.G)), group_of(host)
            self.G.append(nn.Parameter(kaiming(torch.empty(method.experts, method.r))))
            if key not in self.A:
                self.A[key] = nn.Parameter(kaiming(torch.empty(method.r, host.fan_in)))
            if group not in self.B:
                self.B[group] = nn.Parameter(torch.zeros(method.experts, host.fan_out, method.r))


@register(
    "lily", subcategory="low-rank, shared across layers", merge="none", export="none",
    inference_overhead="extra modules", per_sample_routing=True, hosts=("linear",),
    source="Zhong et al. 2024, arXiv:2407.09946",
)  # fmt: skip
class Lily(Method):
    r"""Lily: layers share their down-projections with neighbours and choose among up-projections that all of their kind share.

        y = W x + s (sum_e p_e B_e) A x,    p the mean over tokens of softmax(G A x)

    when        a higher rank at the same count: layers learn from each other, and what is learnt hangs on the input
    shapes      A [r, in] for `stride` consecutive layers of one role and shape; B [experts, out, r] for all of them; G [experts, r] a layer
    init        A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0: starts as the base; G ~ U(-1/sqrt(r), 1/sqrt(r))
    mean        'sample': over the tokens of a sample; 'batch': over all tokens of a call, as in PEFT, so that an output hangs on the others
                in its batch
    parameters  r in per `stride` layers, experts r out per kind, experts r per layer: 9,445,376 for LLaMA-2-7B, q and v, r = 32, stride 1,
                experts 4
    merge       none: the update depends on the input
    source      Zhong et al. 2024, arXiv:2407.09946
    """

    r: int = option(32, at_least=1, help="rank of the update")
    stride: int = option(1, at_least=1, help="consecutive layers that share A")
    experts: int = option(4, at_least=1, help="B that all layers of a kind share")
    scale: float = option(1.0, help="s")
    mean: Literal["sample", "batch"] = option("sample", help="what the choice of experts is averaged over")

    def places(self, hosts: Sequence[Host]) -> list[tuple[str, Host]]:
        """Every host with the name of its A."""
        seen: dict[str, int] = {}
        found = []
        for host in hosts:
            group = group_of(host)
            seen[group] = seen.get(group, -1) + 1
            found.append((f"{group}_{seen[group] // self.stride}", host))
        return found

    def parameters(self, host: Host) -> int:
        return 0

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Interconnected(self, hosts)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        down = {key: self.r * host.fan_in for key, host in self.places(hosts)}
        up = {group_of(host): self.experts * self.r * host.fan_out for host in hosts}
        return sum(down.values()) + sum(up.values()) + len(hosts) * self.experts * self.r

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LilyAdapter:
        return LilyAdapter(self, host, shared)


class LilyAdapter(Adapter):
    """One layer; what it trains is shared, or kept with what is."""

    own_strength = True

    def __init__(self, method: Lily, host: Host, shared: nn.Module | None):
        super().__init__(host, shared)
        self.scale, self.by_sample = method.scale, method.mean == "sample"

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        key, number = self.shared.place[self.host.name]
        A, B, G = (
            v.to(device=y.device, dtype=y.dtype)
            for v in (self.shared.A[key], self.shared.B[group_of(self.host)], self.shared.G[number])
        )
        z = F.linear(x.to(y.dtype), A)
        p = F.linear(z, G).softmax(-1)
        # [batch, ..., experts]: over all that a sample has, or all that there is
        first = int(self.by_sample and p.dim() > 2)
        if p.dim() > 1 and not (self.by_sample and p.dim() == 2):
            p = p.mean(tuple(range(first, p.dim() - 1)), keepdim=True)
        spread = (p[..., :, None] * z[..., None, :]).flatten(
            -2
        )  # [..., experts r]: B_e of p_e z, summed over e
        return torch.add(y, F.linear(spread, B.transpose(0, 1).flatten(1)), alpha=self.scale * self.strength)
