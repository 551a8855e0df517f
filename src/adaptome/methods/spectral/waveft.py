"""WaveFT: a few trained wavelet coefficients of the update."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.sparse import Scattered
from adaptome.methods.spectral.fourierft import positions, too_many


@register(
    "waveft",
    subcategory="spectral, wavelet",
    export="delta",
    source="Bilican et al. 2025, arXiv:2505.12532",
)
class WaveFT(Method):
    r"""WaveFT: a few trained wavelet coefficients of the update.

        dW = alpha IDWT2(S),    S[p_i, q_i] = c_i and zero elsewhere; one level of Daubechies' wavelet

    when        the number of trained numbers is to be set one by one, below what LoRA of rank 1 has
    shapes      S [out, in]: smooth top left, details of rows top right, of columns bottom left, of both bottom right; positions p, q [n], distinct, drawn from `position_seed`: equal on
                layers of one shape; c [n]
    init        c = 0: starts as the base
    parameters  n per layer: 165,888 for LLaMA-2-7B, q and v, n = 2592
    forward     a coefficient is a patch of dW of 2 moments on either side, so n (2 moments)^2 entries of the weight are moved, as
                `sparse-delta` moves its own; no transform is made
    edges       as PEFT's: S lies in the middle of a grid that is 2 (moments - 1) wider on both sides, and even
    merge       exact
    source      Bilican et al. 2025, arXiv:2505.12532
    """

    n: int = option(2592, at_least=1, help="coefficients per layer")
    alpha: float = option(25.0, help="scale of the update")
    moments: int = option(1, at_least=1, at_most=8, help="vanishing moments of the wavelet: 1 is Haar's, db1")
    position_seed: int = option(777, help="draws the positions, and is saved instead of them")

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or too_many(self.n, host)

    def parameters(self, host: Host) -> int:
        return self.n * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> WaveFTAdapter:
        return WaveFTAdapter(self, host)


class WaveFTAdapter(Scattered):
    """c of one layer; the cells of its patches and their heights."""

    rebuilt = ("index", "heights")

    def __init__(self, method: WaveFT, host: Host):
        M, N = host.fan_out, host.fan_in
        p, q = positions(M, N, method.n, method.position_seed)
        rows, beyond_row, lower = patch(p, M, method.moments)
        columns, beyond_column, right = patch(q, N, method.moments)
        filters = torch.tensor(daubechies(method.moments), dtype=torch.float64, device=p.device)
        # of a detail of one side alone: top right lie those that are detailed from row to row, bottom left from column to column
        by_row, by_column = filters[right.long()] * ~beyond_row, filters[lower.long()] * ~beyond_column
        heights = by_row[:, :, None] * by_column[:, None]
        cells = (rows[:, :, None] * N + columns[:, None]).flatten()
        copy = torch.arange(host.copies, device=p.device)[:, None] * (M * N)
        super().__init__(host, (copy + cells).flatten())
        self.scale = method.alpha
        self.register_buffer("heights", heights.flatten(1).to(torch.promote_types(host.dtype, torch.float32)))
        self.c = nn.Parameter(torch.zeros(*host.lead, method.n))

    def numbers(self) -> Tensor:
        heights = self.get_buffer("heights").to(self.c.dtype)
        return ((self.scale * self.c)[..., None] * heights).flatten()


def patch(k: Tensor, size: int, moments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where coefficients k `[n]` of a side show in the signal, `[n, 2 moments]`; what of that is beyond the edges; which are in the second half."""
    beyond = 2 * moments - 2
    wide = size + beyond + (size + beyond) % 2
    at = k + (wide - size) // 2
    second = at >= wide // 2
    places = 2 * (at - second * (wide // 2))[:, None] + torch.arange(2 * moments, device=k.device) - beyond
    return places.clamp(0, size - 1), (places < 0) | (places >= size), second


@functools.cache
def daubechies(moments: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The filters `[2 moments]` of the orthonormal wavelet with so many vanishing moments: of the smooth half and of the detail.

    Daubechies 1988: the half of the roots of its power spectrum inside the unit circle.
    """
    y = np.roots([math.comb(moments - 1 + k, k) for k in reversed(range(moments))])
    half = 1 - 2 * y.astype(complex)
    roots = half + np.sqrt(half**2 - 1)
    inside = np.where(abs(roots) < 1, roots, 1 / roots)
    low = np.real(np.poly(np.concatenate([inside, -np.ones(moments)])))
    low = low * (math.sqrt(2) / low.sum())
    high = low[::-1] * (-1.0) ** np.arange(len(low))
    return tuple(low.tolist()), tuple(high.tolist())
