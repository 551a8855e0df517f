"""PETALface: two low-rank branches on each layer, mixed for every sample by how good its image is."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import require
from adaptome.forms.branches import Branches, Start
from adaptome.forms.per_sample import per_row, refuse_per_sample


@register(
    "petalface",
    subcategory="low-rank, mixed per sample",
    export="low-rank",
    per_sample_routing=True,
    hosts=("linear", "conv"),
    default_targets="qkv",
    source="Narayan et al. 2024, arXiv:2412.07771",
)
class PETALface(Method):
    r"""PETALface: two low-rank branches on each layer, mixed for every sample by how good its image is.

        y = W x + s drop(B_low A_low (1 - a) x) + s drop(B_high A_high a x),    a = 0.5 + (q - threshold)

    when        one model for images of very different quality
    shapes      W [out, in] frozen; A_low, A_high [r, in], B_low, B_high [out, r]; q [batch] scores of image quality
    init        'gaussian': A ~ N(0, 1/r^2), B = 0: starts as the base for every a; 'kaiming', 'down-zero' likewise
    use         `ad.steer(quality=scores)`, one score per sample, or one number for all; layers that see windows of a sample
                as rows of their own repeat its score
    clamp       to [0, 1] unless turned off; the release does not clamp. `lower_is_better` is for scores such as BRISQUE's
    parameters  2 r (in + out) per layer: 1,130,496 for the paper's Swin (fused qkv, r = 8)
    merge       exact for one quality; refused for scores per sample. Export: peft-lora, exact (rank 2 r)
    source      Narayan et al. 2024, arXiv:2412.07771
    """

    r: int = option(8, at_least=1, help="rank of each branch")
    scale: float = option(1.0, help="s, whatever the rank")
    threshold: float = option(
        0.5, help="the quality at which both branches count the same; the mean score of the training data"
    )
    lower_is_better: bool = option(False, help="a = 0.5 - (q - threshold)")
    clamp: bool = option(True, help="keep a within [0, 1]")
    dropout: float = option(
        0.0, at_least=0, below=1, help="on each branch's output; the paper trains with 0.1"
    )
    init: Start = option("gaussian", help="how A and B start")

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return ({"quality": self.threshold - 0.25},)

    def parameters(self, host: Host) -> int:
        return 2 * self.r * (host.fan_in + host.fan_out)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PETALfaceAdapter:
        return PETALfaceAdapter(self, host)

    def share(self, quality: Tensor | float) -> Tensor | float:
        """a of scores, elementwise."""
        a = 0.5 + (self.threshold - quality if self.lower_is_better else quality - self.threshold)
        if not self.clamp:
            return a
        return a.clamp(0, 1) if isinstance(a, Tensor) else min(max(a, 0.0), 1.0)


Branch = Literal["low", "high"]


class PETALfaceAdapter(Branches):
    """Both branches of one layer."""

    def __init__(self, method: PETALface, host: Host):
        super().__init__(host, {"low": method.r, "high": method.r}, method.scale, method.dropout, method.init)
        self.method = method

    def factors(self) -> tuple[Tensor, Tensor]:
        """The mixed pair of one quality."""
        a = self.method.share(require("quality", "petalface"))
        A, _ = self.joined("low", "high")
        return A, torch.cat([(1 - a) * self.B["low"], a * self.B["high"]], -1)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        """The mixture acts on the 2 r activations between A and B."""
        a = self.method.share(require("quality", "petalface"))
        if not isinstance(a, Tensor) or a.dim() == 0:
            shares: Any = {"low": 1 - a, "high": a}
        else:
            rows = per_row(a.to(y.device, y.dtype), y.shape[0], "quality").view(-1, *[1] * (y.dim() - 1))
            shares = {"low": 1 - rows, "high": rows}
        x = x.to(y.dtype)
        if not (self.dropout and self.training):
            A, B = self.joined("low", "high")
            return self.host.add_expanded(
                y, self.weighed(self.host.reduce(x, A), shares), B, self.scale * self.strength
            )
        for name in shares:
            added = self.host.expand(self.host.reduce(x, self.A[name]) * shares[name], self.B[name])
            y = torch.add(y, F.dropout(added, self.dropout), alpha=self.scale * self.strength)
        return y

    def weighed(self, z: Tensor, shares: dict[Branch, Any]) -> Tensor:
        """The reduced activations, those of each branch times its share."""
        channel = 1 if self.host.kind == "conv" else -1
        parts = z.tensor_split(
            z.shape[channel] // self.method.r, channel
        )  # with groups, low and high take turns
        return torch.cat([part * shares["high" if i % 2 else "low"] for i, part in enumerate(parts)], channel)

    def check_merge(self) -> None:
        refuse_per_sample(require("quality", "petalface"), "quality", self.host)

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """Exact factors of one quality; MergeError for scores per sample."""
        self.check_merge()
        return super().as_lora()
