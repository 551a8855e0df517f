"""BOFT: every layer's input is turned by a product of sparse rotations that together mix far inputs, as an FFT does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, nearest_divisor, option, register
from adaptome.forms.rotation import Rotation, cayley, dropped, skew, turned
from adaptome.methods.orthogonal.oft import indivisible

#: widest groups whose factors are multiplied before they turn anything
FUSED = 64


@register(
    "boft",
    subcategory="orthogonal, butterfly",
    export="delta",
    hosts=("linear", "conv", "experts", "parameter"),
    source="Liu et al. 2023, arXiv:2311.06243, section 4",
)
class BOFT(Method):
    r"""BOFT: every layer's input is turned by a product of sparse rotations that together mix far inputs, as an FFT does.

        W' = diag(s) W R,    R = R^(1) ... R^(m),    R^(i) = P_i^T diag(R_1, ..., R_{in/b}) P_i;    y = s * (W (R x))

    when        the update is to keep the angles between neurons and mix far inputs, with fewer numbers than `oft`
    shapes      Q [m, in / b, b (b - 1) / 2] as in OFT; s [out] with `scale`; P_i joins half blocks that lie 2^(i-1) half blocks apart,
                so m factors mix b 2^(m-1) inputs, which must divide in
    init        Q = 0, s = 1: starts as the base
    parameters  m in (b - 1) / 2 per layer, and out with `scale`: 786,432 for LLaMA-2-7B, q and v, b = 4, m = 2,
                and 262,144 more with `scale`
    forward     the factors mix groups of w = b 2^(m-1) inputs, so up to w = 64 their product is made first, one w x w block a group, and
                turns the activations: in w products a token against the layer's in out (in b m for one after the other); x
                alone is kept. s keeps the layer's output
    dropout     a training pass leaves a random share of the blocks of one factor, drawn too, unturned in a linear layer; a weight that is
                read is turned whole
    special     m = 1 without scale is OFT
    merge       exact
    source      Liu et al. 2023, arXiv:2311.06243, section 4
    """

    size: int = option(4, at_least=2, help="b, the width of a block")
    factors: int = option(2, at_least=1, help="m, how many rotations are multiplied")
    scale: bool = option(False, help="train a factor for every output too, as the authors' code does")
    dropout: float = option(
        0.0, at_least=0, below=1, help="share of one factor's blocks left unturned in training"
    )

    def validate(self) -> None:
        if self.factors > 1 and self.size % 2:
            raise MethodError(f"boft: size = {self.size} is odd: its halves are what the factors join.")

    def fitting(self, host: Host) -> dict[str, Any]:
        """The nearest size that divides; where the inputs have too few factors of 2, or the size is given, fewer rotations."""
        size, factors = self.size, self.factors
        while True:
            mixed, half = (
                2 ** (factors - 1),
                1 if factors == 1 else 2,
            )  # what several factors join are halves of blocks
            if "size" not in self.given and host.fan_in % (mixed * half) == 0:
                size = half * nearest_divisor(host.fan_in // (mixed * half), self.size // half, 3 - half)
            if host.fan_in % (size * mixed) == 0 or factors == 1 or "factors" in self.given:
                return {"size": size, "factors": factors}
            factors -= 1

    def admits(self, host: Host) -> str | None:
        width = self.size * 2 ** (self.factors - 1)
        return super().admits(host) or indivisible(host, width, "size * 2^(factors - 1)")

    def parameters(self, host: Host) -> int:
        rotations = self.factors * host.fan_in * (self.size - 1) // 2
        return (rotations + self.scale * host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Rotation:
        return BOFTAdapter(self, host)


class BOFTAdapter(Rotation):
    """Q and s of one layer."""

    def __init__(self, method: BOFT, host: Host):
        super().__init__(host, method.dropout)
        self.b, self.m = b, m = method.size, method.factors
        self.Q = nn.Parameter(torch.zeros(*host.lead, m, host.fan_in // b, b * (b - 1) // 2))
        self.s = nn.Parameter(torch.ones(*host.lead, host.fan_out)) if method.scale else None

    def blocks(self, dtype: torch.dtype, dropout: float = 0.0) -> list[tuple[Tensor, Tensor | None]]:
        R = cayley(skew(self.Q, self.b))
        R = dropped(R, dropout, alone=True) if dropout else R
        width = self.b * 2 ** (self.m - 1)
        fused = width <= FUSED
        if fused:  # [*, m, groups, blocks of a group, b, b]
            R = R.unflatten(-3, (-1, width // self.b))
        factors = [
            (
                R.select(-5 if fused else -4, i),
                butterfly(width if fused else self.host.fan_in, self.b, i, R.device),
            )
            for i in reversed(range(self.m))
        ]
        if not fused:
            return [(factor.to(dtype), order) for factor, order in factors]
        # what becomes of a group's unit vectors are the columns of its block
        columns = torch.eye(width, dtype=R.dtype, device=R.device).expand(*factors[0][0].shape[:-3], -1, -1)
        for factor, order in factors:
            columns = turned(columns, factor, order)
        return [(columns.mT.to(dtype), None)]

    def weight(self, W: Tensor) -> Tensor:
        W = super().weight(W)
        return W if self.s is None else W * self.s[..., None].to(W.dtype)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.s is None:
            return super().forward(frozen, x, *args, **kwargs)
        y: Tensor = frozen(self.rotated(x), *args, **kwargs)
        bias, s = frozen.bias(), self.s.to(y.dtype)
        y = y * s if bias is None else (y - bias.to(y.dtype)) * s + bias.to(y.dtype)
        return y if self.strength == 1.0 else torch.lerp(frozen(x, *args, **kwargs), y, self.strength)


def butterfly(size: int, b: int, i: int, device: torch.device) -> Tensor | None:
    """The order in which factor i takes the inputs: half blocks 2^i apart side by side; None as they are."""
    if i == 0:
        return None
    halves = torch.arange(size, device=device).view(-1, 2, 2**i, b // 2)
    return halves.transpose(1, 2).reshape(-1)
