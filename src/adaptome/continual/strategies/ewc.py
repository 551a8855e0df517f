r"""ewc: weights that mattered for earlier tasks are held near what they were.

    L + lambda/2 sum_k sum_i F_k,i (theta_i - theta_k,i)^2,    F_k,i = 1/n sum_rows (d log p(y|x) / d theta_i)^2

theta: what trains. F is the empirical Fisher information, of single rows of task k. Kirkpatrick et al. 2017, arXiv:1612.00796.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from adaptome.continual.loop import Loop
from adaptome.continual.losses import Anchor
from adaptome.continual.strategy import Strategy, StrategySettings, register_strategy
from adaptome.objectives import Term


class EWCSettings(StrategySettings):
    strength: float = Field(default=1000.0, ge=0, description="lambda")
    samples: int = Field(default=200, ge=1, description="rows of a task that F is estimated on")


@register_strategy("ewc")
class EWC(Strategy):
    """Hold what mattered near what it was."""

    Settings = EWCSettings

    def __init__(self, settings: StrategySettings):
        super().__init__(settings)
        self.tasks: list[dict[str, Any]] = []

    def added(self, loop: Loop) -> list[Term]:
        return [Term(Anchor(loop, self.tasks), self.settings.strength)] if self.tasks else []

    def end(self, loop: Loop) -> None:
        rows, parameters = loop.rows(), loop.parameters
        draw = np.random.default_rng([loop.seed, loop.at])
        chosen = [rows[i] for i in draw.permutation(len(rows))[: self.settings.samples]]
        squares = sum((loop.gradient([row], "loss").square() for row in chosen), start=torch.zeros(()))
        parts = (squares / len(chosen)).split([p.numel() for p in parameters.values()])
        fisher = {name: f.view_as(p) for (name, p), f in zip(parameters.items(), parts, strict=True)}
        self.tasks.append({"fisher": fisher, "values": loop.values()})

    def state(self) -> dict[str, Any]:
        return {"tasks": self.tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.tasks = list(state["tasks"])
