r"""lae: learning, accumulation, ensemble. Any small module, no memory of rows.

    learning       cross-entropy over the present labels alone; from the second task on the adapters rest for the first share of the steps
    accumulation   from the second task on, after every step:  off <- eta off + (1 - eta) on;  off begins as what the first task left
    ensemble       p = max(softmax(z_on), softmax(z_off)), element by element, over the labels seen so far

on, off: the adapters; the head is shared and not averaged, and starts N(0, 0.001^2) with bias 0. Speeds are calibrated by the methods'
own factors (lora and prefix-tuning: train_scale; adapters: scale=learned). Gao et al. 2023, arXiv:2303.10070.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from adaptome.continual.loop import Loop, masked
from adaptome.continual.strategy import Again, Strategy, StrategySettings, register_strategy
from adaptome.continual.stream import Stream
from adaptome.core.errors import RecipeError


class LAESettings(StrategySettings):
    classes: Literal["seen", "present", "all"] = Field(
        default="present", description="labels of the cross-entropy"
    )
    decay: float = Field(default=0.9999, ge=0, lt=1, description="eta; 0.99 for runs of some hundred steps")
    freeze: float = Field(
        default=0.6, ge=0, lt=1, description="share of a later task's steps that train the head alone"
    )
    experts: Literal["both", "online", "offline"] = Field(default="both", description="what predicts")
    head_std: float = Field(default=0.001, ge=0, description="of the head's start")


@register_strategy("lae")
class LAE(Strategy):
    """An adapter that learns fast, one that follows slowly, and the surer of both."""

    Settings = LAESettings

    def __init__(self, settings: StrategySettings):
        super().__init__(settings)
        #: values of the adapters, from the second task on
        self.offline: dict[str, Tensor] = {}

    @property
    def several(self) -> bool:
        return self.settings.experts == "both" and bool(self.offline)

    def check(self, stream: Stream, training: Any) -> None:
        if stream.kind != "class":
            raise RecipeError("continual.strategy: lae needs a stream by labels: continual.stream.by=labels.")
        if training.weight_decay:
            raise RecipeError(
                f"training.weight_decay={training.weight_decay}: the heads of earlier tasks would decay, which lae does not train.\n"
                "  Set training.weight_decay=0."
            )

    def begin(self, loop: Loop) -> None:
        if loop.at == 0:
            draw = torch.Generator().manual_seed(loop.seed)
            with torch.no_grad():
                for name, p in loop.parameters.items():
                    if name in loop.heads:
                        start = torch.randn(p.shape, generator=draw) * (
                            self.settings.head_std if p.dim() > 1 else 0.0
                        )
                        p.copy_(start)
        elif not self.offline:
            self.offline = {k: v for k, v in loop.values().items() if k not in loop.heads}

    def callbacks(self, loop: Loop) -> list[Any]:
        adapters = set(loop.names) - set(loop.heads)
        return [_Course(self, loop)] if loop.at and adapters else []

    def logits(self, loop: Loop, outputs: Any, again: Again, part: int | None = None) -> Tensor:
        online = masked(outputs["logits"], loop.seen)
        if not self.offline or self.settings.experts == "online":
            return online
        offline = masked(again(self.offline)["logits"], loop.seen)
        return offline if self.settings.experts == "offline" else ensemble(online, offline)

    def state(self) -> dict[str, Any]:
        return {"offline": self.offline}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.offline = dict(state["offline"])


def ensemble(online: Tensor, offline: Tensor) -> Tensor:
    """The logarithm of the element-wise greater of two tables of probabilities, from logits [rows, labels]."""
    return torch.maximum(online.float().log_softmax(-1), offline.float().log_softmax(-1))


class _Course(TrainerCallback):
    """Lets the adapters rest first, and the offline ones follow."""

    def __init__(self, strategy: LAE, loop: Loop):
        self.strategy, self.loop = strategy, loop
        self.follow = get_ema_multi_avg_fn(strategy.settings.decay)

    def _adapters(self) -> dict[str, nn.Parameter]:
        return {k: p for k, p in self.loop.parameters.items() if k not in self.loop.heads}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trains = state.global_step >= round(self.strategy.settings.freeze * state.max_steps)
        for p in self._adapters().values():
            if p.requires_grad != trains:
                p.requires_grad_(trains)
                p.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        online, offline = self._adapters(), self.strategy.offline
        with torch.no_grad():
            here = {k: offline[k].to(p.device) for k, p in online.items()}
            self.follow(list(here.values()), [p.detach() for p in online.values()], state.global_step)
            self.strategy.offline = here

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for p in self._adapters().values():
            p.requires_grad_(True)

    def kept(self) -> dict[str, Any]:
        """For the checkpoints of a task that is being trained."""
        return self.strategy.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `kept`."""
        self.strategy.restore(state)
