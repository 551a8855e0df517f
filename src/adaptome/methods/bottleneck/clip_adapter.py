"""CLIP-Adapter: final features mixed with what a small bottleneck makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.bottleneck import Bottleneck, inside_a_block
from adaptome.forms.insertion import hidden, with_hidden


@register(
    "clip-adapter", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    identity_at_init=False, hosts=("linear", "module"), default_targets="visual_projection", models=("VLM",), source="Gao et al. 2021, arXiv:2110.04544",
)  # fmt: skip
class CLIPAdapter(Method):
    r"""CLIP-Adapter: final features mixed with what a small bottleneck makes of them.

        f = layer(x);    y = ratio relu(U relu(D f)) + (1 - ratio) f

    when        few-shot classification on CLIP's features, the towers left alone
    shapes      D [b, d], U [d, b], b = d / reduction, d = the width of the features: CLIP's visual_projection, text_projection, or both
    init        Kaiming-uniform(a = sqrt 5), both: does not start as the base; with U = 0 the outer relu would let no gradient through
    parameters  2 d b per layer: 131,072 for CLIP ViT-B/16's image features, d = 512
    merge       none: it is not linear
    source      Gao et al. 2021, arXiv:2110.04544, whose alpha is the ratio; 0.2, reduction 4 and no biases as in the authors' code
    """

    ratio: float = option(0.2, at_least=0, at_most=1, help="the adapter's share")
    reduction: int = option(4, at_least=1, help="d / b")

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or inside_a_block(host)

    def size(self, host: Host) -> int:
        """b."""
        return max(1, host.fan_out // self.reduction)

    def parameters(self, host: Host) -> int:
        return 2 * host.fan_out * self.size(host)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> CLIPAdapterAdapter:
        return CLIPAdapterAdapter(self, host)


class CLIPAdapterAdapter(Bottleneck):
    """The bottleneck of one kind of features."""

    def __init__(self, method: CLIPAdapter, host: Host):
        super().__init__(host, host.fan_out, host.fan_out, method.size(host), "relu")
        nn.init.kaiming_uniform_(self.U, a=math.sqrt(5))
        self.ratio = method.ratio

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        output = frozen(*args, **kwargs)
        f = hidden(output)
        return with_hidden(output, torch.lerp(f, self.bypass(f).relu(), self.ratio * self.strength))
