"""PVeRA: VeRA whose reduced activations are drawn around a mean while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank
from adaptome.methods.low_rank.vera import SharedFactors


class MeanAndVariance(nn.Module):
    """VeRA's shared B, and its A twice: for the means and for the logarithms of the variances."""

    rebuilt = ("A", "B")

    def __init__(self, method: PVeRA, hosts: Sequence[Host]):
        super().__init__()
        mean, other = (SharedFactors(method.r, hosts, method.projection_seed + i) for i in (0, 1))
        self.register_buffer("A", torch.cat([mean.get_buffer("A"), other.get_buffer("A")]))
        self.register_buffer("B", mean.get_buffer("B"))


@register(
    "pvera",
    subcategory="low-rank, shared random factors, probabilistic",
    export="low-rank",
    hosts=("linear",),
    source="Fillioux et al. 2025, arXiv:2512.07703",
)
class PVeRA(Method):
    r"""PVeRA: VeRA whose reduced activations are drawn around a mean while it trains.

        y = W x + diag(b) B z,    z ~ N(mu, diag(exp(v))),    [mu, v] = diag(d) A x;    z = mu in evaluation

    when        VeRA on few examples, where noise regularises
    shapes      A [2 r, in], B [out, r] frozen, the corner of one pair for all layers; d [2 r], b [out]
    init        A, B Kaiming-uniform(a = sqrt 5) from `projection_seed` (not stored), d = `d_initial`, b = 0: starts as the base
    parameters  2 r + out per layer: 294,912 for LLaMA-2-7B, q and v, r = 256
    prior       the paper's divergence from a normal prior is no term of the loss here, as in PEFT
    merge       exact for the means, which evaluation uses; export: peft-lora, exact
    source      Fillioux et al. 2025, arXiv:2512.07703
    """

    r: int = option(256, at_least=1, help="rank; costs two numbers each")
    d_initial: float = option(0.1, help="the start of d")
    sample: bool = option(False, help="draw in evaluation too")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    projection_seed: int = option(0, help="draws the shared factors")

    def parameters(self, host: Host) -> int:
        return 2 * self.r + host.fan_out

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return MeanAndVariance(self, hosts)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PVeRAAdapter:
        return PVeRAAdapter(self, host, shared)


class PVeRAAdapter(LowRank):
    """d and b of one layer."""

    def __init__(self, method: PVeRA, host: Host, shared: nn.Module | None):
        super().__init__(host, 1.0, method.dropout, shared)
        self.r, self.sample = method.r, method.sample
        self.d = nn.Parameter(torch.full((2 * method.r,), method.d_initial, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(host.fan_out))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Those of the means."""
        A, B = self.shared.A[: self.r, : self.host.fan_in], self.shared.B[: self.host.fan_out]
        return self.d[: self.r, None] * A.to(self.d.dtype), self.b[:, None] * B.to(self.b.dtype)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        if not (self.training or self.sample):
            return super().add_product(y, x)
        x = F.dropout(x.to(y.dtype), self.dropout, self.training)
        mean, variance = (
            self.host.reduce(x, self.shared.A[:, : self.host.fan_in]) * self.d.to(y.dtype)
        ).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * variance).exp()
        return self.host.add_expanded(y, z, self.factors()[1], self.strength)
