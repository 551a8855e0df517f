"""C3A: the update is a grid of circulant blocks, each one trained row."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.delta import Delta

#: the widest block taken when none is named
WIDEST = 256


@register(
    "c3a",
    subcategory="spectral, circulant",
    export="delta",
    source="Chen et al. 2024, arXiv:2407.19342",
)
class C3A(Method):
    r"""C3A: the update is a grid of circulant blocks, each one trained row.

        dW[m, n] = C(w_mn) / in,    C(w)[k, j] = w[(j - k) mod b];    (C(w) x)[k] = sum_j w[(j - k) mod b] x[j]

    when        updates of high rank from few numbers: a block of b^2 entries costs b
    shapes      w [out / b, in / b, b]: b = `size` divides in and out
    init        w = 0: starts as the base
    parameters  in out / b per layer: 18,432 for RoBERTa-base, q and v, b = 768; 110,592 with b = 128
    forward     by FFT over the activations: in log b + out log b + 2 in out / b a token; x's spectrum is kept
    merge       exact; export: peft-lora by SVD, its error told
    source      Chen et al. 2024, arXiv:2407.19342; divided by in as in the authors' code
    """

    size: int | None = option(
        None, at_least=1, help=f"b; the largest divisor of both sides up to {WIDEST} when not given"
    )

    def block(self, host: Host) -> int:
        """b on this layer."""
        if self.size is not None:
            return self.size
        common = math.gcd(host.fan_in, host.fan_out)
        return max(b for b in range(1, min(common, WIDEST) + 1) if common % b == 0)

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and self.size and math.gcd(host.fan_in, host.fan_out) % self.size:
            reason = f"size = {self.size} does not divide both its sides, {host.fan_in} and {host.fan_out}"
        return reason

    def parameters(self, host: Host) -> int:
        return host.fan_in * host.fan_out // self.block(host) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> C3AAdapter:
        return C3AAdapter(self, host)


class C3AAdapter(Delta):
    """w of one layer."""

    def __init__(self, method: C3A, host: Host):
        super().__init__(host, fast=host.kind == "linear")
        self.b = method.block(host)
        self.w = nn.Parameter(torch.zeros(*host.lead, host.fan_out // self.b, host.fan_in // self.b, self.b))

    def delta(self) -> Tensor:
        k = torch.arange(self.b, device=self.w.device)
        blocks = self.w[..., (k - k[:, None]) % self.b]  # [*, out / b, in / b, b, b]
        return blocks.transpose(-2, -3).flatten(-2).flatten(-3, -2) / self.host.fan_in

    def product(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(torch.promote_types(x.dtype, self.w.dtype), torch.float32)
        X = torch.fft.rfft(x.to(exact).unflatten(-1, (-1, self.b)))
        W = torch.fft.rfft(self.w.to(exact)).conj()
        Y = torch.einsum("...nf,mnf->...mf", X, W)
        return (torch.fft.irfft(Y, n=self.b).flatten(-2) / self.host.fan_in).to(x.dtype)
