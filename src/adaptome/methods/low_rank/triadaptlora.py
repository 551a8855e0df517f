"""TriAdaptLoRA: a triangular core between the factors that grows where it is growing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms import triangular
from adaptome.forms.low_rank import LowRank
from adaptome.forms.sharded import drawing, whole, write

STD = 0.02


@register(
    "triadaptlora", subcategory="low-rank, growing", export="low-rank",
    source="Liang et al. 2025, arXiv:2501.08008",
)  # fmt: skip
class TriAdaptLoRA(Method):
    r"""TriAdaptLoRA: a triangular core between the factors that grows where it is growing.

        y = W x + (alpha / s) B (L + U) A x,    s the active rank of the layer, in blocks: r_1 = `init_r`, then `growth` each

    when        as `adalora`, with ranks that grow where they matter and are not cut
    shapes      A [S, in], B [out, S]; block k owns rows k of L up to its own end and columns k of U likewise, r_k s_k numbers each (for
                blocks of 1: a lower and an upper triangle); S = `max_r`; what is beyond s is masked out
    init        A, L and the diagonal blocks of U ~ N(0, 0.02^2), the first block of U with them; B = 0: starts as the base. New ranks
                are drawn likewise, B = 0 and the rest of U = 0, so that growing changes nothing and both B and U have a
                gradient at once (the authors' file starts everything but A at 0, where no gradient is)
    score       change of |L + U|_F / K since the last allocation, K the number of active blocks
    schedule    after `warmup` of the steps, every `interval` steps: the layers with the k largest scores grow; k = floor(Q p) ('linear') or
                floor(Q^p) ('non-linear'), between 1 and all layers; p the progress to `end`, Q the ranks left of r times the
                layers; the last allocation is cut to what is left
    scale       alpha / s falls as s grows: `compensate` multiplies the old core by s_new / s_old
    parameters  S (in + out) + 2 sum r_k s_k per layer, of which only the active rank's train
    merge       exact; export: peft-lora of rank s, exact
    source      Liang et al. 2025, arXiv:2501.08008; no code of the authors' is known
    """

    r: int = option(8, at_least=1, help="rank at the end, on average over the layers")
    init_r: int = option(1, at_least=1, help="rank at the start")
    growth: int | None = option(None, at_least=1, help="ranks added at a time; r / 2 when not given")
    max_r: int | None = option(None, at_least=1, help="largest rank of a layer; 2 r when not given")
    alpha: float = option(16.0, help="the update is scaled by alpha / s")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    warmup: float = option(0.1, at_least=0, below=1, help="share of the steps before growth")
    end: float = option(0.6, above=0, at_most=1, help="share of the steps at which the threshold is lowest")
    interval: int = option(10, at_least=1, help="steps between allocations")
    threshold: Literal["linear", "non-linear", "fixed"] = option(
        "linear", help="how many layers grow at a time"
    )
    top_k: int = option(1, at_least=1, help="how many grow with threshold='fixed'")
    normalise_by: Literal["blocks", "rank", "sqrt_rank"] = option("blocks", help="what the score divides by")
    compensate: bool = option(True, help="keep the function when the scale falls")
    orthogonal: float = option(0.0, at_least=0, help="weight of the orthogonality of A and B in the loss")
    growth_seed: int = option(0, help="draws new ranks")

    @property
    def capacity(self) -> int:
        """S."""
        return max(2 * self.r, self.init_r) if self.max_r is None else self.max_r

    @property
    def step_size(self) -> int:
        """Ranks of a block after the first."""
        return max(self.r // 2, 1) if self.growth is None else self.growth

    def validate(self) -> None:
        if not self.init_r <= self.r <= self.capacity:
            raise MethodError(
                f"triadaptlora: init_r = {self.init_r}, r = {self.r}, max_r = {self.capacity} must rise in this order."
            )
        if self.warmup >= self.end:
            raise MethodError(
                f"triadaptlora: growth would end (end = {self.end}) before it begins (warmup = {self.warmup})."
            )

    def ends(self) -> list[int]:
        """s_k of every block up to the capacity."""
        ends = [*range(self.init_r, self.capacity, self.step_size), self.capacity]
        return sorted(set(ends))

    def parameters(self, host: Host) -> int:
        return (
            self.capacity * (host.fan_in + host.fan_out) + 2 * triangular.count(self.ends())
        ) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return TriAdaptLoRAAdapter(self, host)

    def winners(self, progress: float, left: int, layers: int) -> int:
        """k, how many layers grow."""
        if self.threshold == "fixed":
            k = self.top_k
        else:
            k = math.floor(left * progress if self.threshold == "linear" else left**progress)
        return min(max(k, 1), layers)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        layers: list[Any] = list(adapters.values())
        begin, end = int(self.warmup * total), max(int(self.end * total), 1)
        left = sum(layer.target - int(layer.active) for layer in layers)
        if left <= 0 or step <= begin or (step - begin) % self.interval or step == int(layers[0].allocated):
            return
        progress = min((step - begin) / max(end - begin, 1), 1.0)
        room = [layer for layer in layers if int(layer.active) < layer.capacity]
        scores = {id(layer): layer.score() for layer in room}
        room.sort(key=lambda layer: -scores[id(layer)])
        for layer in room[: self.winners(progress, left, len(layers))]:
            left -= layer.grow(min(left, self.step_size), f"{self.growth_seed}:{layer.host.name}:{step}")
        for layer in layers:
            layer.previous.fill_(layer.size())
            layer.allocated.fill_(step)

    def penalty(self, adapters: Mapping[str, Any], shared: nn.Module | None) -> Tensor | None:
        """`orthogonal` times the mean of `|A A^T - 1|_F` and `|B^T B - 1|_F` over the active ranks of all layers."""
        if not self.orthogonal:
            return None
        terms: list[Tensor] = []
        for layer in adapters.values():
            mask = layer.mask()
            for M in (layer.A * mask[:, None], (layer.B * mask).mT):
                terms.append(
                    torch.linalg.matrix_norm(M @ M.mT - torch.diag(mask)).mean().to(terms[0] if terms else M)
                )
        return self.orthogonal * torch.stack(terms).mean()


class TriAdaptLoRAAdapter(LowRank):
    """A, B and the core of one layer, and how much of them is active."""

    rebuilt = ("place",)
    active: Tensor
    previous: Tensor
    allocated: Tensor
    place: Tensor

    def __init__(self, method: TriAdaptLoRA, host: Host):
        super().__init__(host, 1.0, method.dropout)
        S = self.capacity = method.capacity
        self.method, self.target = method, method.r
        rows, columns, diagonal = triangular.places(method.ends())
        self.A = nn.Parameter(torch.randn(*host.lead, S, host.fan_in) * STD)
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, S))
        self.L = nn.Parameter(torch.randn(*host.lead, len(rows)) * STD)
        self.U = nn.Parameter(torch.randn(*host.lead, len(rows)) * STD * diagonal.to(self.L.device))
        self.register_buffer("place", (rows * S + columns).to(self.L.device))
        self.register_buffer("active", torch.tensor(method.init_r))
        self.register_buffer("allocated", torch.tensor(0))
        self.register_buffer("previous", torch.zeros(()))
        if not self.L.is_meta:
            self.previous.fill_(self.size())

    def mask(self) -> Tensor:
        """1 for active ranks, `[S]`."""
        return (torch.arange(self.capacity, device=self.active.device) < self.active).to(self.A.dtype)

    def core(self) -> Tensor:
        """L + U, `[*, S, S]`, active ranks only."""
        return triangular.assembled(self.L, self.U, self.place, self.mask())

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, (self.method.alpha / self.active.to(self.B.dtype)) * (self.B @ self.core())

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """The active ranks alone."""
        A, B = super().as_lora()
        s = int(self.active)
        return A[..., :s, :].contiguous(), B[..., :s].contiguous()

    @torch.no_grad()
    def size(self) -> float:
        """`|L + U|_F`, normalised."""
        s, method = int(self.active), self.method
        blocks = 1 + math.ceil((s - method.init_r) / method.step_size)
        by = {"blocks": blocks, "rank": s, "sqrt_rank": math.sqrt(s)}[method.normalise_by]
        L, U = whole(self.L).double(), whole(self.U).double()
        return float(triangular.assembled(L, U, self.place, self.mask()).norm()) / by

    def score(self) -> float:
        """Growth of `size` since the last allocation."""
        now, before = torch.tensor(self.size(), dtype=torch.float32), self.previous.float()
        return float(now) - float(before)  # both rounded alike, whatever the base's precision is

    @torch.no_grad()
    def grow(self, ranks: int, seed: str) -> int:
        """Activate more ranks without changing the function; returns how many."""
        old = int(self.active)
        new = min(old + ranks, self.capacity)
        A, B, L, U = (whole(t).clone() for t in (self.A, self.B, self.L, self.U))
        generator = drawing(seed)

        def drawn(like: Tensor) -> Tensor:
            return (torch.randn(like.shape, generator=generator, device="cpu") * STD).to(like)

        A[..., old:new, :] = drawn(A[..., old:new, :])
        B[..., old:new] = 0
        kept = new / old if self.method.compensate else 1.0
        triangular.grow(L, U, self.place, self.capacity, old, new, kept, drawn)
        for place, value in ((self.A, A), (self.B, B), (self.L, L), (self.U, U)):
            write(place, value)
        self.active.fill_(new)
        return new - old
