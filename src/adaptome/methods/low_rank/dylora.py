"""DyLoRA: one LoRA that works at every rank up to r."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import steered
from adaptome.forms.low_rank import LowRank, kaiming
from adaptome.forms.sharded import whole, write


class Draw(nn.Module):
    """The rank that all layers train in this step."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank


@register(
    "dylora",
    subcategory="low-rank, nested ranks",
    export="low-rank",
    source="Valipour et al. 2022, arXiv:2210.07558, section 4",
)
class DyLoRA(Method):
    r"""DyLoRA: one LoRA that works at every rank up to r.

        y = W x + (alpha / b) B[:, :b] A[:b] x,    b drawn once a step for the whole model, from {r_min, r_min + unit, ..., r}

    when        the rank is to be chosen after training, or differs between devices
    shapes      W [out, in] frozen; A [r, in], B [out, r]
    init        A Kaiming-uniform(a = sqrt 5), B = 0: starts as the base at every b
    parameters  r (in + out) per layer: 294,912 for RoBERTa-base, q and v, r = 8
    update      'normal' trains the first b components, 'frozen' the b-th alone (the last `unit` of them), the earlier detached;
                all other rows are put back after the optimiser's step, so that neither momentum nor weight decay moves them
    schedule    `on_step` draws the next b from (`draw_seed`, step): resuming repeats it, and every process draws the same
    use         evaluation runs at rank r, or at b inside `ad.steer(rank=b)`; merge and export there give a plain LoRA of rank b
                with the same alpha
    merge       exact at every b; export: peft-lora, exact
    source      Valipour et al. 2022, arXiv:2210.07558, section 4; alpha / b: the author in kohya-ss/sd-scripts issue 394
    """

    r: int = option(8, at_least=1, help="the largest rank")
    r_min: int = option(1, at_least=1, help="the smallest rank drawn")
    unit: int = option(1, at_least=1, help="ranks are drawn in steps of this size")
    alpha: float = option(16.0, help="the update is scaled by alpha / b")
    update: Literal["frozen", "normal"] = option("normal", help="which components a step trains")
    distribution: Literal["uniform", "geometric"] = option("uniform", help="of b")
    p: float = option(0.15, above=0, below=1, help="of the geometric distribution (truncated to the range)")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    draw_seed: int = option(0, help="of the draws")

    def validate(self) -> None:
        if self.r_min > self.r:
            raise MethodError(f"dylora: r_min = {self.r_min} is above r = {self.r}.")

    def draw(self, step: int) -> int:
        """The rank that step `step` (from 0) trains."""
        ranks = list(range(self.r, self.r_min - 1, -self.unit))[::-1]
        weights = [1.0 if self.distribution == "uniform" else (1 - self.p) ** b for b in ranks]
        return random.Random(f"{self.draw_seed}:{step}").choices(ranks, weights)[0]

    def parameters(self, host: Host) -> int:
        return self.r * (host.fan_in + host.fan_out) * host.copies

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Draw(self.draw(0))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return DyLoRAAdapter(self, host, shared)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        for adapter in adapters.values():
            assert isinstance(adapter, DyLoRAAdapter)
            adapter.keep_untrained()
        draw: Any = shared
        draw.rank = self.draw(step)


class DyLoRAAdapter(LowRank):
    """A and B of one layer."""

    def __init__(self, method: DyLoRA, host: Host, shared: nn.Module | None):
        super().__init__(host, method.alpha / method.r, method.dropout, shared)
        self.r, self.unit, self.detached = method.r, method.unit, method.update == "frozen"
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))
        self._before: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        """b: steered, else drawn in training, else r."""
        rank = steered("rank", self.shared.rank if self.training else self.r)
        if not 1 <= rank <= self.r:
            raise MethodError(f"dylora: rank {rank} is not between 1 and r = {self.r}.")
        return int(rank)

    def first(self, b: int) -> int:
        """The first of the components that 'frozen' trains at rank b; the smallest rank may be below `unit`."""
        return max(b - self.unit, 0)

    def factors(self) -> tuple[Tensor, Tensor]:
        b = self.rank
        A, B = self.A[..., :b, :], self.B[..., :b]
        if self.detached and self.training and torch.is_grad_enabled():
            first = self.first(b)
            A = torch.cat([A[..., :first, :].detach(), A[..., first:, :]], -2)
            B = torch.cat([B[..., :first].detach(), B[..., first:]], -1)
        return A, B * (self.r / b)

    @torch.no_grad()
    def keep_untrained(self) -> None:
        """Put the components back that this step did not train."""
        A, B = whole(self.A), whole(self.B)
        if self._before is not None and self._before[0].shape == A.shape:
            b = self.shared.rank
            trained = slice(self.first(b) if self.detached else 0, b)
            kept_A, kept_B = (t.to(A.device) for t in self._before)
            kept_A[..., trained, :], kept_B[..., trained] = A[..., trained, :], B[..., trained]
            write(self.A, A := kept_A)
            write(self.B, B := kept_B)
        self._before = (A.clone(), B.clone())
