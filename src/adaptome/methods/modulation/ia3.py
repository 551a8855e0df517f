"""IA3: one trained factor per channel of keys, values and MLP activations."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.roles import mlp_part


@register(
    "ia3",
    subcategory="channel scaling",
    export="delta",
    hosts=("linear", "conv", "experts"),
    default_targets=("k", "v", "down"),
    source="Liu et al. 2022, arXiv:2205.05638, section 3.3",
)
class IA3(Method):
    r"""IA3: one trained factor per channel of keys, values and MLP activations.

        output side   y = l * (W x + b)          keys and values
        input side    y = W (l * x) + b          the MLP's last layer; each expert's, where there are experts

    when        few examples, almost no parameters, and an update that merges
    shapes      l [out] or [in]; x [..., in] -> y [..., out]; conv: one factor per channel; fused experts: l [experts, out] or
                [experts, in]
    init        l = 1: starts as the base
    parameters  out or in per layer: 614,400 for LLaMA-2-7B, k, v and down
    merge       exact: rows (and bias) or columns of W scaled
    export      peft-lora by SVD, its error told; refused on a layer whose bias is scaled too
    source      Liu et al. 2022, arXiv:2205.05638, section 3.3
    """

    side: Literal["auto", "input", "output"] = option(
        "auto", help="'auto' scales the input of MLP output layers, else the output"
    )

    def parameters(self, host: Host) -> int:
        return channels(host, self.on_input(host)) * host.copies

    def on_input(self, host: Host) -> bool:
        """Whether the factor is on the layer's input."""
        if self.side != "auto":
            return self.side == "input"
        return host.role == "down" or (host.role == "expert" and mlp_part(host.own_name) == "down")

    def adapter(self, host: Host, shared: nn.Module | None = None) -> IA3Adapter:
        return IA3Adapter(self, host)


def channels(host: Host, on_input: bool) -> int:
    """Channels on one side of a layer; a conv's taps share their channel's factor."""
    if host.kind == "conv":
        return int(host.layer.in_channels if on_input else host.layer.out_channels)
    return host.fan_in if on_input else host.fan_out


class IA3Adapter(WeightAdapter):
    """l of one layer."""

    def __init__(self, method: IA3, host: Host):
        super().__init__(host)
        self.fast = host.kind != "experts"
        self.on_input = method.on_input(host)
        self.l = nn.Parameter(torch.ones(*host.lead, channels(host, self.on_input)))
        bias = f"{host.parameter}_bias" if host.kind == "experts" else "bias"
        self.changes = (host.parameter,) if self.on_input else (host.parameter, bias)

    def factor(self) -> Tensor:
        """l, moved towards 1 by the strength."""
        return self.l if self.strength == 1.0 else 1 + self.strength * (self.l - 1)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.on_input:
            return frozen(x * self.host.along_input(self.factor()).to(x.dtype), *args, **kwargs)
        y: Tensor = frozen(x, *args, **kwargs)
        return y * self.host.along_output(self.factor()).to(y.dtype)

    def changed(self, name: str, value: Tensor) -> Tensor:
        l = self.l.to(value.dtype)
        if name.endswith("bias"):
            return value * l
        if not self.on_input:
            return value * l[..., None]
        if self.host.kind != "conv":
            return value * l.unsqueeze(-2)
        conv = self.host.layer
        per_group = l.view(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, 0)
        return value * per_group.repeat_interleave(value.shape[1] // per_group.shape[1], 1)
