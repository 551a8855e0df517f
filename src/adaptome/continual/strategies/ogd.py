r"""ogd: steps are taken orthogonally to the gradients of earlier tasks' answers, so that these stay to first order.

    g~ = g - sum_b (g.b) b,    b: an orthonormal basis of the gradients of the right label's logit on rows of earlier tasks,
    of a text the mean of its tokens' logits

Farajtabar et al. 2019, arXiv:1910.07104 (OGD-GTL). Needs plain gradient steps to hold exactly: training.optimizer=sgd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from adaptome.continual.loop import Loop
from adaptome.continual.projection import Projected
from adaptome.continual.strategy import Strategy, StrategySettings, register_strategy


class OGDSettings(StrategySettings):
    samples: int = Field(default=100, ge=1, description="rows of each task whose gradients are kept")


def extended(basis: Tensor, g: Tensor) -> Tensor:
    """An orthonormal basis [n, size] with the direction of g that it lacks."""
    rest = g
    for _ in range(2):  # twice is enough for rounding
        rest = rest - basis.T @ (basis @ rest)
    norm = rest.norm()
    return basis if norm <= 1e-6 * g.norm().clamp(min=1e-30) else torch.cat([basis, (rest / norm)[None]])


@register_strategy("ogd")
class OGD(Strategy):
    """Step orthogonally to what earlier answers depend on."""

    Settings = OGDSettings

    def __init__(self, settings: StrategySettings):
        super().__init__(settings)
        self.basis: Tensor | None = None

    def callbacks(self, loop: Loop) -> list[Any]:
        if self.basis is None:
            return []
        basis = self.basis.to(next(loop.model.parameters()).device)
        return [Projected(loop, lambda g, step: g - basis.T @ (basis @ g))]

    def end(self, loop: Loop) -> None:
        rows = loop.rows()
        draw = np.random.default_rng([loop.seed, loop.at])
        for i in draw.permutation(len(rows))[: self.settings.samples]:
            g = loop.gradient([rows[i]], "logit")
            self.basis = extended(g.new_zeros(0, len(g)) if self.basis is None else self.basis.to(g), g)

    def state(self) -> dict[str, Any]:
        return {"basis": self.basis}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.basis = state["basis"]
