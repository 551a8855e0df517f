"""MiSS: one small trained matrix, repeated over the inputs of a layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import WeightAdapter
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank
from adaptome.forms.reparametrization import Reparametrization


@register(
    "miss",
    subcategory="low-rank, repeated",
    export="delta",
    source="Kang and Yin 2024, arXiv:2409.15371",
)
class MiSS(Method):
    r"""MiSS: one small trained matrix, repeated over the inputs of a layer.

        y = W x + D sum_g x_g,    x_g the in / r groups of r inputs (the last filled up with zeros):  dW = [D, D, ..., D]

    when        LoRA's quality with one matrix a layer, and less memory and time
    shapes      D [out, r]
    form        'miss': so. 'mini': D [rows, r] is repeated over the outputs too; rows divides out
                'bat': W'_pg = W_pg + (W_pg + I) D_p over blocks of r x r, D [out / r, r, r], r divides in and out
    init        D = 0: starts as the base
    parameters  r out per layer, r rows with 'mini': 8,388,608 for LLaMA-2-7B, q and v, r = 32
    forward     sums of inputs before one thin product; 'bat' reads W'
    merge       exact; export: peft-lora by SVD with rank r, which is exact but for 'bat'
    names       formerly Bone
    source      Kang and Yin 2024, arXiv:2409.15371
    """

    r: int = option(32, at_least=1, help="rank: inputs in a group")
    form: Literal["miss", "mini", "bat"] = option("miss", help="how the blocks of the update are made")
    rows: int = option(1, at_least=1, help="of 'mini': outputs that have rows of their own")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input; not with 'bat'")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and self.r > host.fan_in:
            reason = f"r = {self.r} is above its {host.fan_in} inputs"
        if reason is None and self.form == "mini" and host.fan_out % self.rows:
            reason = f"rows = {self.rows} does not divide its {host.fan_out} outputs"
        if reason is None and self.form == "bat" and (host.fan_in % self.r or host.fan_out % self.r):
            reason = (
                f"form='bat' needs r = {self.r} to divide both its sides, {host.fan_in} and {host.fan_out}"
            )
        return reason

    def parameters(self, host: Host) -> int:
        return self.r * (self.rows if self.form == "mini" else host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> WeightAdapter:
        return BatAdapter(self, host) if self.form == "bat" else MiSSAdapter(self, host)


class MiSSAdapter(LowRank):
    """D of one layer."""

    def __init__(self, method: MiSS, host: Host):
        super().__init__(host, dropout=method.dropout)
        self.r = method.r
        rows = method.rows if method.form == "mini" else host.fan_out
        self.D = nn.Parameter(torch.zeros(*host.lead, rows, method.r))

    def factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.r, dtype=self.D.dtype, device=self.D.device)
        A = eye.repeat(1, -(-self.host.fan_in // self.r))[:, : self.host.fan_in]
        B = self.D.repeat(*[1] * len(self.host.lead), self.host.fan_out // self.D.shape[-2], 1)
        return A.expand(*self.host.lead, -1, -1), B

    def reduced(self, x: Tensor, A: Tensor, dropout: float) -> Tensor:
        if self.host.kind != "linear":
            return super().reduced(x, A, dropout)
        x = F.pad(F.dropout(x, dropout, self.training), (0, -x.shape[-1] % self.r))
        return x.unflatten(-1, (-1, self.r)).sum(-2)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        return super().add_product(y, x)  # not fused with the layer: A is never multiplied by


class BatAdapter(Reparametrization):
    """D of one layer, which acts on the weight's blocks too."""

    def __init__(self, method: MiSS, host: Host):
        super().__init__(host)
        self.D = nn.Parameter(torch.zeros(*host.lead, host.fan_out // method.r, method.r, method.r))

    def weight(self, W: Tensor) -> Tensor:
        r = self.D.shape[-1]
        D = self.D.to(W.dtype)[..., None, :, :]
        blocks: Any = (
            W.unflatten(-1, (-1, r)).unflatten(-3, (-1, r)).transpose(-2, -3)
        )  # [*, out / r, in / r, r, r]
        moved = blocks + blocks @ D + D
        return moved.transpose(-2, -3).flatten(-2).flatten(-3, -2)
