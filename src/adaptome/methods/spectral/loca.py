"""LoCA: cosine coefficients of the update, whose places in the spectrum are learned as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.sharded import still
from adaptome.forms.spectrum import COSINE, CosineMatrix, SparseSpectrum
from adaptome.methods.spectral.fourierft import positions, too_many

Phase = Literal["both", "coefficients", "locations"]


class Turn(nn.Module):
    """What all layers train in this step; both until a schedule drives it."""

    def __init__(self) -> None:
        super().__init__()
        self.phase: Phase = "both"


@register(
    "loca",
    subcategory="spectral, cosine",
    export="delta",
    source="Du et al. 2025, arXiv:2502.06820",
)
class LoCA(Method):
    r"""LoCA: cosine coefficients of the update, whose places in the spectrum are learned as well.

        dW = alpha C^T S D,    S[p_t, q_t] += a_t;  C [out, out], D [in, in] orthonormal DCT-II, so |dW| = alpha |S|

    when        as `fourierft`, where the frequencies that matter are to be learned too
    shapes      a [n]; l [2, n] offsets of rows and columns from start cells drawn from `position_seed`:
                (p, q)_t = round(clamp(start_t + pace l_t)); always in at least float32
    init        a = 0, l = 0: starts as the base; a location whose coefficient is 0 has no gradient, so values come first
    parameters  n coefficients, and 2 n locations unless they are 'fixed': 24,000 + 48,000 for RoBERTa-base, q and v, n = 1000
    gradient    K = C G D^T, G = dL/d(C^T S D): dL/da_t = K[p, q] exactly; of a row (a column likewise), straight through the rounding,
                a_t (K[p+1, q] - K[p-1, q]) / 2, neighbours clamped to the grid, the result to [-1, 1]
    schedule    on_step: in the first `location_share` of all steps in turn `coefficient_steps` of a alone, `location_steps` of l
                alone; then a alone. What a step does not train is put back after it, whatever the optimiser did to it. A
                loop that never calls on_step trains both at once
    forward     by FFT: over the activations, O(in log in + out log out + n) a token, or for many tokens over dW, see forms/spectrum.py;
                the gradients of a and l need K at 5 n cells alone. C and D are never formed
    merge       exact
    source      Du et al. 2025, arXiv:2502.06820
    """

    n: int = option(1000, at_least=1, help="coefficients per layer")
    alpha: float = option(1.0, help="scale of the update")
    locations: Literal["learned", "fixed"] = option("learned", help="whether the places move")
    pace: float = option(16.0, above=0, help="cells that a location moves by when l moves by 1")
    coefficient_steps: int = option(10, at_least=1, help="steps of a in a cycle")
    location_steps: int = option(20, at_least=1, help="steps of l in a cycle")
    location_share: float = option(
        0.1, at_least=0, at_most=1, help="the share of all steps in which locations move"
    )
    position_seed: int = option(777, help="draws the start cells, and is saved instead of them")

    def phase(self, step: int, total: int) -> Phase:
        """What step `step` (from 0) of `total` trains."""
        moving = self.locations == "learned" and step < self.location_share * total
        turn = step % (self.coefficient_steps + self.location_steps)
        return "locations" if moving and turn >= self.coefficient_steps else "coefficients"

    def fitting(self, host: Host) -> dict[str, Any]:
        return {"n": min(self.n, host.fan_in * host.fan_out)}

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or too_many(self.n, host)

    def parameters(self, host: Host) -> int:
        return (3 if self.locations == "learned" else 1) * self.n * host.copies

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Turn()

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SparseSpectrum:
        return LoCAAdapter(self, host, shared)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        turn: Any = shared
        for adapter in adapters.values():
            assert isinstance(adapter, LoCAAdapter)
            adapter.put_back()
        turn.phase = self.phase(step, total)
        for adapter in adapters.values():
            assert isinstance(adapter, LoCAAdapter)
            adapter.keep()


class LoCAAdapter(SparseSpectrum):
    """a and l of one layer."""

    basis = COSINE
    rebuilt = ("start",)
    exact = True  # half precision cannot tell neighbouring cells apart

    def __init__(self, method: LoCA, host: Host, shared: nn.Module | None):
        super().__init__(host, method.alpha, method.n, shared)
        self.pace = method.pace
        start = positions(host.fan_out, host.fan_in, method.n, method.position_seed)
        self.register_buffer("start", torch.stack(start).to(torch.int32))
        self.a = nn.Parameter(torch.zeros(*host.lead, method.n))
        learned = method.locations == "learned"
        self.l = nn.Parameter(torch.zeros(*host.lead, 2, method.n)) if learned else None
        self._kept: tuple[str, Tensor] | None = None

    def limits(self) -> dict[str, Any]:
        return {"start": [self.host.fan_out, self.host.fan_in]}

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Rows and columns on the grid before rounding, `[*, n]` each."""
        at = self.get_buffer("start").to(self.a.dtype).expand(*self.host.lead, -1, -1)
        if self.l is not None:
            at = at + self.pace * (self.l if self.shared.phase != "coefficients" else still(self.l))
        rows, columns = at.unbind(-2)
        return rows.clamp(0, self.host.fan_out - 1), columns.clamp(0, self.host.fan_in - 1)

    @property
    def coefficients(self) -> Tensor:
        """a, without gradient in the steps of the locations."""
        return still(self.a) if self.shared.phase == "locations" else self.a

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        return *self.coordinates(), self.coefficients

    def delta(self) -> Tensor:
        sides = self.host.fan_out, self.host.fan_in
        made: Tensor = CosineMatrix.apply(self.scale * self.coefficients, *self.coordinates(), *sides)
        return made

    @torch.no_grad()
    def keep(self) -> None:
        """Remember what the coming step does not train."""
        untrained = {"coefficients": "l", "locations": "a"}.get(self.shared.phase)
        value = self._parameters.get(untrained) if untrained else None
        self._kept = None if value is None or untrained is None else (untrained, value.detach().clone())

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what an optimiser's momentum or decay did to it."""
        if self._kept is not None:
            name, value = self._kept
            self.get_parameter(name).copy_(value)
