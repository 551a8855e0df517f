"""LoKr: the update is a Kronecker product of a small matrix and a low-rank one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.kronecker import Kronecker, divisors
from adaptome.forms.low_rank import kaiming


@register(
    "lokr",
    subcategory="Kronecker product",
    export="delta",
    source="Yeh et al. 2023 (LyCORIS), arXiv:2309.14859; KronA: Edalati et al. 2022, arXiv:2212.10650",
)
class LoKr(Method):
    r"""LoKr: the update is a Kronecker product of a small matrix and a low-rank one.

        dW = s C (x) B A,    s = alpha / r;    (C (x) B A) x = C X (B A)^T with x seen as X [i1, i2]

    when        updates of high rank in very small files, mostly for image generation
    shapes      C [o1, i1], B [o2, r], A [r, i2]; out = o1 o2, in = i1 i2 with o1 <= o2, i1 <= i2 as near to each other as divisors
                can be, or with o1, i1 near `factor`; convolutions: i1 divides the channels, A has the kernel's columns
                where r >= max(o2, i2) / 2, B A is one trained matrix D [o2, i2]; with `decompose_both` C may be Cb Ca likewise
    init        'c': C = 0 (PEFT); 'd': the second factor = 0 (LyCORIS, PEFT's "lycoris"): A, or D where it is whole; the
                others Kaiming-uniform(a = sqrt 5). Either starts as the base
    parameters  o1 i1 + r (o2 + i2) per layer: 327,680 for LLaMA-2-7B, q and v, r = 8
    forward     i2 o2 i1 + i1 o1 o2 products a token (or o1 i1 i2 + i2 o1 o2, when fewer) against the layer's in out: 1/32 at
                4096 x 4096; the backward keeps x alone
    merge       exact
    source      Yeh et al. 2023 (LyCORIS), arXiv:2309.14859
    """

    r: int = option(8, at_least=1, help="rank of the second factor")
    alpha: float = option(8.0, help="the update is scaled by alpha / r")
    factor: int = option(-1, at_least=-1, help="what o1 and i1 are near; -1: the square roots of out and in")
    decompose_both: bool = option(False, help="C is a low-rank product too where that is smaller")
    init: Literal["c", "d"] = option("c", help="which factor starts at zero")

    def sides(self, host: Host) -> tuple[int, int, int, int]:
        """o1, i1, o2, i2."""
        kernel = host.stored("weight")[0, 0].numel() if host.kind == "conv" else 1
        (o1, o2), (i1, i2) = divisors(host.fan_out, self.factor), divisors(host.fan_in // kernel, self.factor)
        return o1, i1, o2, i2 * kernel

    def ranks(self, host: Host) -> tuple[int, int]:
        """The ranks of the first and the second factor; 0 for a whole matrix."""
        o1, i1, o2, i2 = self.sides(host)
        kernel = host.stored("weight")[0, 0].numel() if host.kind == "conv" else 1
        first = self.r if self.decompose_both and self.r < max(o1, i1) / 2 else 0
        return first, self.r if self.r < max(o2, i2 // kernel) / 2 else 0

    def parameters(self, host: Host) -> int:
        o1, i1, o2, i2 = self.sides(host)
        first, second = self.ranks(host)
        C = first * (o1 + i1) if first else o1 * i1
        return (C + (second * (o2 + i2) if second else o2 * i2)) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Kronecker:
        return LoKrAdapter(self, host)


class LoKrAdapter(Kronecker):
    """The factors of one layer."""

    def __init__(self, method: LoKr, host: Host):
        super().__init__(host, method.alpha / method.r)
        o1, i1, o2, i2 = method.sides(host)
        for names, rows, columns, rank, zero in zip(
            (("C", "Cb", "Ca"), ("D", "B", "A")),
            (o1, o2), (i1, i2), method.ranks(host), (method.init == "c", method.init == "d"),
            strict=True,
        ):  # fmt: skip
            shapes = [(rows, columns)] if not rank else [(rows, rank), (rank, columns)]
            for name, shape in zip(names[:1] if not rank else names[1:], shapes, strict=True):
                value = kaiming(torch.empty(*host.lead, *shape))
                # PEFT zeroes the left part of C's product, LyCORIS the right part of D's
                last = name in ("C", "Cb", "D", "A")
                self.register_parameter(name, nn.Parameter(value.zero_() if zero and last else value))

    def pair(self) -> tuple[Tensor, Tensor]:
        own = self._parameters
        C = self._matrix("Cb") @ self._matrix("Ca") if own.get("C") is None else self._matrix("C")
        return C, self._matrix("B") @ self._matrix("A") if own.get("D") is None else self._matrix("D")

    def _matrix(self, name: str) -> Tensor:
        return self.get_parameter(name)
