"""Poly: several low-rank skills on each layer, and for every task a trained choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import RelaxedBernoulli

from adaptome.core.errors import MergeError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import require
from adaptome.forms.branches import check_tasks, known_task
from adaptome.forms.low_rank import LowRank, kaiming
from adaptome.forms.per_sample import by_sample


@register(
    "poly",
    subcategory="low-rank, skills of tasks",
    export="low-rank",
    hosts=("linear",),
    per_sample_routing=True,
    source="Ponti et al. 2022, arXiv:2202.13914; Caccia et al. 2022, arXiv:2211.03831",
)
class Poly(Method):
    r"""Poly: several low-rank skills on each layer, and for every task a trained choice among them.

        y = W x + (1 / r) B_t A_t x,    A_t = sum_s w_ts A_s,  B_t = sum_s w_ts B_s,    w_t = sigmoid(z_t) / sum_s sigmoid(z_ts)

    when        many tasks that have parts in common, and new tasks with few examples
    shapes      A_s [r, in], B_s [out, r] for each of `skills`; z [tasks, splits, skills]: with splits > 1 (multi-head routing) each of so
                many parts of the inputs, and of the outputs, has a choice of its own; splits divides in and out
    init        A Kaiming-uniform(a = sqrt 5), B = 0: starts as the base; z ~ U(-0.001, 0.001)
    use         `ad.steer(task="depth")`, or one name per sample, `ad.steer(task=["depth", "edges", ...])`
    training    sigmoid(z) is a draw of the relaxed Bernoulli distribution with these logits, at temperature 1
    parameters  skills r (in + out) + tasks splits skills per layer
    merge       exact for one task; refused for one per sample. Export: peft-lora, exact
    source      Ponti et al. 2022, arXiv:2202.13914; splits: Caccia et al. 2022, arXiv:2211.03831
    """

    tasks: tuple[str, ...] = option(("first", "second"), help="names of the tasks")
    r: int = option(8, at_least=1, help="rank of each skill")
    skills: int = option(4, at_least=1, help="how many skills the tasks choose from")
    splits: int = option(1, at_least=1, help="parts of a layer's sides that choose for themselves")

    def validate(self) -> None:
        check_tasks("poly", self.tasks)

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return tuple({"task": task} for task in self.tasks)

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and (host.fan_in % self.splits or host.fan_out % self.splits):
            reason = (
                f"splits = {self.splits} does not divide both its sides, {host.fan_in} and {host.fan_out}"
            )
        return reason

    def parameters(self, host: Host) -> int:
        pairs = self.skills * self.r * (host.fan_in + host.fan_out)
        return pairs + len(self.tasks) * self.splits * self.skills

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PolyAdapter:
        return PolyAdapter(self, host)


class PolyAdapter(LowRank):
    """The skills of one layer, and the tasks' choices among them."""

    def __init__(self, method: Poly, host: Host):
        super().__init__(host, 1 / method.r)
        self.tasks = method.tasks
        q, s, r = method.splits, method.skills, method.r
        self.A = nn.Parameter(kaiming(torch.empty(q, s, r, host.fan_in // q)))
        self.B = nn.Parameter(torch.zeros(q, s, host.fan_out // q, r))
        self.z = nn.Parameter(torch.empty(len(method.tasks), q, s).uniform_(-1e-3, 1e-3))

    def chosen(self, tasks: Sequence[str]) -> Tensor:
        """w of tasks, `[tasks, splits, skills]`."""
        z = self.z[[self.tasks.index(known_task("poly", task, self.tasks)) for task in tasks]]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        # adapters of half precision would draw 0 and 1
        drawn = (
            RelaxedBernoulli(torch.ones((), device=z.device), logits=z).rsample()
            if self.training
            else z.sigmoid()
        )
        return drawn / (drawn.sum(-1, keepdim=True) + 1e-12)

    def mixed(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """A `[tasks, r, in]` and B `[tasks, out, r]`."""
        w = self.chosen(tasks)
        A = torch.einsum("tqs,qsri->trqi", w.to(self.A.dtype), self.A).flatten(-2)
        return A, torch.einsum("tqs,qsor->tqor", w.to(self.B.dtype), self.B).flatten(1, 2)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Those of the steered task."""
        self.check_merge()
        A, B = self.mixed([require("task", "poly")])
        return A[0], B[0]

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        task = require("task", "poly")
        if isinstance(task, str):
            return super().add_product(y, x)
        names = list(dict.fromkeys(task))
        rows = torch.tensor([names.index(t) for t in task], device=y.device)
        A, B = (factor.to(y.dtype)[rows] for factor in self.mixed(names))
        z = by_sample(x.to(y.dtype), len(task), "task") @ A.mT
        return torch.add(y, (z @ B.mT).view(y.shape), alpha=self.scale * self.strength)

    def check_merge(self) -> None:
        if not isinstance(require("task", "poly"), str):
            raise MergeError(
                f"poly on {self.host.name}: tasks are steered per sample, which have no one weight.\n  Merge inside `with ad.steer(task=...)` with one name."
            )
