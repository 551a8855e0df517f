"""MoS: every layer assembles its factors from shards of pools that all layers of its kind share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank, group_of


class Pools(nn.Module):
    """The trained shards of every group, and each layer's place in its group."""

    def __init__(self, method: MoS, hosts: Sequence[Host]):
        super().__init__()
        self.method = method
        self.layers: dict[str, int] = {}
        self.first: dict[str, int] = {}
        for host in hosts:
            group = group_of(host)
            self.first[host.name] = self.layers.get(group, 0)
            self.layers[group] = self.layers.get(group, 0) + host.copies
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for host in hosts:
            group, l = group_of(host), method.shards
            if group not in self.A:
                rows = self.layers[group] * method.r * l
                bound = host.fan_in**-0.5
                self.A[group] = nn.Parameter(torch.empty(rows, host.fan_in // l).uniform_(-bound, bound))
                self.B[group] = nn.Parameter(torch.zeros(rows, host.fan_out // l))


@register(
    "mos",
    subcategory="low-rank, shared shards",
    export="low-rank",
    source="Wang et al. 2025, arXiv:2410.00938",
)
class MoS(Method):
    r"""MoS: every layer assembles its factors from shards of pools that all layers of its kind share.

        y = W x + (alpha / q) B A x,    row t of A = [P_A[a(t l)], ..., P_A[a(t l + l - 1)]],  column t of B likewise from P_B and b

    when        many adapters have to be stored: LoRA's quality from pools that layers share
    shapes      P_A [L r l, in / l], P_B [L r l, out / l]: one pair for the L layers of one role and shape; A [q, in], B [out, q];
                a, b [q l] fixed integers of the layer
    init        P_A ~ U(-1/sqrt(in), 1/sqrt(in)), P_B = 0: starts as the base; a and b are drawn apart: (q - p) l of the public
                rows, none twice, and the p l private rows that belong to the layer alone; they are saved
    parameters  L r (in + out) per group, whatever q, l and p are: 4,997,120 for LLaMA-2-7B, all-linear, r = 2
    special     q = r = p is LoRA of rank r
    names       the paper's e is `r` here, for it sets the count as LoRA's r does; its r is `layer_rank`, q above
    experts     every expert is a layer of its own
    merge       exact; export: peft-lora of rank q, exact
    source      Wang et al. 2025, arXiv:2410.00938 (its equation 5 has the pools of A and B exchanged by mistake)
    """

    r: int = option(8, at_least=1, help="what the pools cost: as many parameters as LoRA of this rank")
    layer_rank: int | None = option(
        None, at_least=1, help="rank each layer has; 4 r when not given, or what its pools hold"
    )
    shards: int = option(4, at_least=1, help="pieces each vector is cut into; divides in and out")
    private: int = option(1, at_least=0, help="of r, the rank whose shards belong to one layer alone")
    alpha: float = option(16.0, help="the update is scaled by alpha / layer_rank")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def validate(self) -> None:
        if self.private > self.r:
            raise MethodError(f"mos: private = {self.private} is above r = {self.r}.")
        if self.layer_rank is not None and self.layer_rank < self.private:
            raise MethodError(f"mos: layer_rank = {self.layer_rank} is below private = {self.private}.")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and (host.fan_in % self.shards or host.fan_out % self.shards):
            reason = (
                f"its sides {host.fan_in} and {host.fan_out} do not both divide by shards = {self.shards}"
            )
        return reason

    def rank(self, layers: int) -> int:
        """q in a group of so many layers.

        Raises:
            MethodError: the pools hold fewer public shards than a layer is to have.
        """
        most = self.private + (self.r - self.private) * layers
        wanted = min(4 * self.r, most) if self.layer_rank is None else self.layer_rank
        if wanted > most:
            raise MethodError(
                f"mos: layer_rank = {wanted} needs more distinct shards than the pools of {layers} layers hold: at most {most} with r = {self.r} "
                f"and private = {self.private}.\n  Lower layer_rank, raise r, or target more layers of one kind."
            )
        return wanted

    def parameters(self, host: Host) -> int:
        return 0

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Pools(self, hosts)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return sum(self.r * (host.fan_in + host.fan_out) * host.copies for host in hosts)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> MoSAdapter:
        assert isinstance(shared, Pools)
        pooled = shared.method
        if (self.r, self.shards, self.private) != (pooled.r, pooled.shards, pooled.private):
            raise MethodError(
                f"mos on {host.name}: r, shards and private are the pools' and cannot differ between layers; layer_rank and alpha can."
            )
        return MoSAdapter(self, host, shared)


class MoSAdapter(LowRank):
    """The routing of one layer; what it trains is in the pools."""

    a: Tensor
    b: Tensor

    def __init__(self, method: MoS, host: Host, shared: Pools):
        self.group = group_of(host)
        layers, first = shared.layers[self.group], shared.first[host.name]
        rank = method.rank(layers)
        super().__init__(host, method.alpha / rank, method.dropout, shared)
        for name in "ab":
            routes = [_route(method, layers, first + copy, rank) for copy in range(host.copies)]
            self.register_buffer(name, torch.stack(routes).view(*host.lead, rank * method.shards))

    def limits(self) -> dict[str, Any]:
        return {"a": len(self.shared.A[self.group]), "b": len(self.shared.B[self.group])}

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = (
            pool[self.group].to(index.device)[index]
            for pool, index in ((self.shared.A, self.a), (self.shared.B, self.b))
        )
        host = self.host
        return A.view(*host.lead, -1, host.fan_in), B.view(*host.lead, -1, host.fan_out).mT


def _route(method: MoS, layers: int, layer: int, rank: int) -> Tensor:
    """Rows of the pool for one layer: public ones drawn without repetition, then its private ones."""
    l, p = method.shards, method.private
    public = (method.r - p) * layers * l
    own = torch.arange(public + layer * p * l, public + (layer + 1) * p * l)
    return torch.cat([torch.randperm(public)[: (rank - p) * l], own])
