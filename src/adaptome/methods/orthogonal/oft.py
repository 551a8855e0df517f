"""OFT: every layer's input is turned by a trained block-diagonal rotation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, nearest_divisor, option, register
from adaptome.forms.rotation import Rotation, cayley, cayley_series, dropped, skew, within


@register(
    "oft",
    subcategory="orthogonal",
    export="delta",
    hosts=("linear", "conv", "experts", "parameter"),
    source="Qiu et al. 2023, arXiv:2306.07280, section 3; input side: Qiu et al. 2025, arXiv:2506.19847",
)
class OFT(Method):
    r"""OFT: every layer's input is turned by a trained block-diagonal rotation.

        W' = W R,    R = diag(R_1, ..., R_{in/b}),    R_i = (I + Q_i) (I - Q_i)^-1,    Q_i skew;    y = W (R x)

    when        the update is to keep the angles between neurons, as in image generation
    shapes      Q [in / b, b (b - 1) / 2], the entries above the diagonals, row by row; b = `size` divides in. With `block_share` one Q
                [1, b (b - 1) / 2] turns all blocks alike
    init        Q = 0, R = I: starts as the base
    series      k > 0: R_i = (I + Q_i) (I + Q_i + ... + Q_i^k) without a solver, as in OFTv2 and PEFT (k = 3 there): orthogonal up to Q^(k + 1)
    coft        every |Q_i| <= eps / sqrt(how many Q_i), Frobenius: longer ones are cut to it, in the function, and in training before each
                pass in Q itself (projected gradient descent)
    dropout     a training pass leaves a random share of a linear layer's blocks unturned; a weight that is read is turned whole. PEFT 0.21
                has the setting and never applies it
    parameters  in (b - 1) / 2 per layer: 4,063,232 for LLaMA-2-7B, q and v, b = 32; b (b - 1) / 2 with `block_share`
    forward     R turns the activations: in b products a token against the layer's in out; other kinds than linear read W R
    keeps       R^T R = I, so W W^T, the norms of W's rows and its singular values (without `series`)
    merge       exact
    source      Qiu et al. 2023, arXiv:2306.07280, section 3; on the input side: arXiv:2506.19847
    """

    size: int = option(
        32,
        at_least=2,
        help="b, the width of a block; must divide the layer's inputs; not given, the nearest divisor is taken where 32 does not",
    )

    def fitting(self, host: Host) -> dict[str, Any]:
        return {"size": nearest_divisor(host.fan_in, self.size)}

    block_share: bool = option(False, help="one rotation for all blocks of a layer")
    series: int = option(
        0, at_least=0, help="k, the terms of the Cayley-Neumann series for the inverse; 0 inverts exactly"
    )

    coft: bool = option(False, help="keep every block near the identity: |Q_i| <= eps / sqrt(blocks)")
    eps: float = option(6e-5, above=0, help="the bound of coft")
    dropout: float = option(0.0, at_least=0, below=1, help="share of blocks left unturned in training")

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or indivisible(host, self.size, "size")

    def rotations(self, host: Host) -> int:
        """How many different blocks a layer has."""
        return 1 if self.block_share else host.fan_in // self.size

    def parameters(self, host: Host) -> int:
        return self.rotations(host) * (self.size * (self.size - 1) // 2) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Rotation:
        return OFTAdapter(self, host)


class OFTAdapter(Rotation):
    """Q of one layer."""

    def __init__(self, method: OFT, host: Host):
        super().__init__(host, method.dropout)
        self.b, self.series = method.size, method.series
        self.eps = method.eps if method.coft else None
        self.Q = nn.Parameter(torch.zeros(*host.lead, method.rotations(host), self.b * (self.b - 1) // 2))

    def bounded(self) -> Tensor:
        """Q, with `coft` inside its bound."""
        if self.eps is None:
            return self.Q
        Q = within(self.Q, self.eps)
        if not (self.training and torch.is_grad_enabled()):
            return Q
        with torch.no_grad():
            self.Q.copy_(Q)
        return self.Q

    def blocks(self, dtype: torch.dtype, dropout: float = 0.0) -> list[tuple[Tensor, Tensor | None]]:
        Q = skew(self.bounded(), self.b)
        R = cayley_series(Q, self.series) if self.series else cayley(Q)
        R = R.to(dtype).expand(*R.shape[:-3], self.host.fan_in // self.b, -1, -1)
        return [(dropped(R, dropout) if dropout else R, None)]


def indivisible(host: Host, width: int, setting: str) -> str | None:
    """The reason when blocks of this width do not fill the inputs."""
    if host.fan_in % width == 0:
        return None
    near = nearest_divisor(host.fan_in, width)
    return f"{setting} = {width} does not divide its {host.fan_in} inputs; the nearest divisor is {near}"
