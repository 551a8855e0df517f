"""Multitask prompt tuning: one prompt for all tasks, changed for each by a low-rank factor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import require
from adaptome.forms.branches import check_tasks, known_task
from adaptome.forms.prompt import InputPrompts, Place, embedding_width, token_refusal
from adaptome.forms.soft import drawn_rows


@register(
    "multitask-prompt", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", per_sample_routing=True, hosts=("backbone",), default_targets="backbones",
    source="Wang et al. 2023, arXiv:2303.02861",
)  # fmt: skip
class MultitaskPrompt(Method):
    r"""Multitask prompt tuning: one prompt for all tasks, changed for each by a low-rank factor.

        y = backbone([P * (U_t V_t); embed(x)]), without the places of the prompt

    when        many tasks, and new ones with few examples that start from what all had in common
    shapes      P [p, d]; U_t [p, r], V_t [r, d] for every task t
    init        P as in `prompt-tuning`; U, V ~ N(0, `std`^2), 0.02 in PEFT, which makes the prompts tiny at the start. None is the base
    use         `ad.steer(task="rte")`, or one name per sample, `ad.steer(task=["rte", "cola", ...])`
    parameters  p d + tasks r (p + d) per backbone: 90,152 for LLaMA-2-7B, p = 20, 2 tasks, r = 1
    distil      the paper learns P from prompts of single tasks first: train those, and set P and the factors to them
    merge       none: it is no change of weights
    source      Wang et al. 2023, arXiv:2303.02861
    """

    tasks: tuple[str, ...] = option(("first", "second"), help="names of the tasks")
    p: int = option(20, at_least=1, help="how many vectors")
    r: int = option(1, at_least=1, help="rank of a task's factor")
    std: float = option(0.02, above=0, help="of the factors at the start")
    place: Place = option(
        "auto", help="before the tokens or after the first; 'auto': after the first where a pooler reads it"
    )

    def validate(self) -> None:
        check_tasks("multitask-prompt", self.tasks)

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return tuple({"task": task} for task in self.tasks)

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or token_refusal(host)

    def parameters(self, host: Host) -> int:
        width = embedding_width(host)
        return self.p * width + len(self.tasks) * self.r * (self.p + width)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> MultitaskPrompts:
        return MultitaskPrompts(self, host)


class MultitaskPrompts(InputPrompts):
    """P, and the factors of every task."""

    def __init__(self, method: MultitaskPrompt, host: Host):
        super().__init__(host, method.p, method.place)
        self.tasks, count = method.tasks, len(method.tasks)
        self.P = nn.Parameter(drawn_rows(host.layer.get_input_embeddings(), method.p))
        self.U = nn.Parameter(torch.randn(count, method.p, method.r) * method.std)
        self.V = nn.Parameter(torch.randn(count, method.r, embedding_width(host)) * method.std)

    def prompts(self) -> Tensor:
        """`[p, d]` of one task, `[batch, p, d]` of one per sample."""
        steered = require("task", "multitask-prompt")
        names = [steered] if isinstance(steered, str) else list(steered)
        index = [self.tasks.index(known_task("multitask-prompt", name, self.tasks)) for name in names]
        made = self.P * (self.U[index] @ self.V[index])
        return made[0] if isinstance(steered, str) else made
