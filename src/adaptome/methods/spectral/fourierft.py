"""FourierFT: a few trained Fourier coefficients of the update."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.spectrum import FOURIER, SparseSpectrum, real_inverse


@register(
    "fourierft",
    subcategory="spectral, Fourier",
    export="delta",
    source="Gao et al. 2024, arXiv:2405.03003, section 3",
)
class FourierFT(Method):
    r"""FourierFT: a few trained Fourier coefficients of the update.

        dW = alpha Re(IDFT2(S)),    S[p_i, q_i] = c_i and zero elsewhere

    when        files have to be tiny, and the update of high rank
    shapes      S [out, in], complex positions p, q [n], distinct, drawn from `position_seed`: equal on layers of one shape; c [n]
    init        c = 0: starts as the base; 'normal': c ~ N(0, 1), as the paper has it
    parameters  n per layer: 64,000 for LLaMA-2-7B, q and v, n = 1000
    forward     by FFT over the activations, O(in log in + out log out + n) a token; for many tokens over dW, see forms/spectrum.py; the
                real and imaginary parts of the half spectrum make S real with 2 n entries
    merge       exact; IDFT2 divides by out in, hence the large alpha
    source      Gao et al. 2024, arXiv:2405.03003, section 3
    """

    n: int = option(1000, at_least=1, help="coefficients per layer")
    alpha: float = option(300.0, help="scale of the update")
    init: Literal["zero", "normal"] = option("zero", help="of the coefficients")
    position_seed: int = option(777, help="draws the positions, and is saved instead of them")

    def fitting(self, host: Host) -> dict[str, Any]:
        return {"n": min(self.n, host.fan_in * host.fan_out)}

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or too_many(self.n, host)

    def parameters(self, host: Host) -> int:
        return self.n * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SparseSpectrum:
        return FourierFTAdapter(self, host)


class FourierFTAdapter(SparseSpectrum):
    """c of one layer, and its positions `[2, n]`: rows and columns of the cells of the spectrum."""

    basis = FOURIER
    rebuilt = ("positions",)

    def __init__(self, method: FourierFT, host: Host):
        M, N = host.fan_out, host.fan_in
        super().__init__(host, method.alpha / (M * N), 2 * method.n)
        self.register_buffer("positions", torch.stack(positions(M, N, method.n, method.position_seed)))
        self.derive()
        c = torch.randn if method.init == "normal" else torch.zeros
        self.c = nn.Parameter(c(*host.lead, method.n))

    def limits(self) -> dict[str, Any]:
        return {"positions": [self.host.fan_out, self.host.fan_in]}

    def derive(self) -> None:
        """Rows, columns and signs of the real spectrum's entries, and the cells of the half spectrum."""
        M, N = self.host.fan_out, self.host.fan_in
        p, q = self.get_buffer("positions").unbind()
        # frequencies above the half are conjugates of those below: each conjugation turns the sign of the imaginary part
        above_p, above_q, full_p = 2 * p > M, 2 * q > N, p
        p, q = torch.where(above_p, M - p, p), torch.where(above_q, N - q, q)
        turned = torch.where(above_p ^ above_q, 1, -1)
        # for dW: the cells of the half spectrum of a real matrix, whose inner columns stand for their conjugates too
        half, alone = N // 2 + 1, (q == 0) | (2 * q == N)
        made = {
            "rows": torch.cat([p, p + M // 2 + 1]),
            "columns": torch.cat([q, q + N // 2 + 1]),
            "signs": torch.cat([torch.ones_like(turned), turned]).to(torch.int8),
            "cells": torch.where(above_q, (M - full_p) % M, full_p) * half + q,
            "weights": torch.where(alone, 1.0, 0.5),
        }
        for name, value in made.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def coefficients(self) -> Tensor:
        """c in at least float32: FFTs know no half precision."""
        return self.c.to(torch.promote_types(self.c.dtype, torch.float32))

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        signs: Any = self.signs
        c = self.coefficients
        return self.get_buffer("rows"), self.get_buffer("columns"), torch.cat([c, c], -1) * signs

    def delta(self) -> Tensor:
        M, N = self.host.fan_out, self.host.fan_in
        c = self.coefficients
        values = c * (self.get_buffer("weights").to(c.dtype) * (self.scale * M * N))
        S = values.new_zeros(*self.host.lead, M * (N // 2 + 1)).index_add(
            -1, self.get_buffer("cells"), values
        )
        return real_inverse(S.to(values.dtype.to_complex()).unflatten(-1, (M, N // 2 + 1)), N)


@functools.lru_cache(maxsize=16)
def positions(M: int, N: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n distinct cells of an M x N grid, rows and columns, as PEFT draws them."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(M * N, generator=generator, device="cpu")[:n]
    return cells // N, cells % N


def too_many(n: int, host: Host) -> str | None:
    """The reason when a layer has fewer cells than coefficients are asked for."""
    cells = host.fan_in * host.fan_out
    return f"n = {n} coefficients, but its weight has {cells}" if n > cells else None
