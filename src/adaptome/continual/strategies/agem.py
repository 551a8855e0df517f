r"""a-gem: a step that would raise the mean loss on the memory is projected so that it does not.

    g~ = g - (g.r / r.r) r   where g.r < 0,    r the gradient on rows drawn from the memory

Chaudhry et al. 2018, arXiv:1812.00420, eq. 11.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from adaptome.continual.loop import Loop
from adaptome.continual.memory import MemorySettings, WithMemory
from adaptome.continual.projection import Projected
from adaptome.continual.strategy import register_strategy


class AGEMSettings(MemorySettings):
    samples: int = Field(
        default=64, ge=1, description="rows of the memory that r is taken on, drawn for every step"
    )


def projected(g: Tensor, r: Tensor) -> Tensor:
    """g~ of a gradient and the reference."""
    dot = g @ r
    return g if dot >= 0 else g - dot / (r @ r) * r


@register_strategy("a-gem")
class AGEM(WithMemory):
    """Never step against the memory's mean gradient."""

    Settings = AGEMSettings

    def callbacks(self, loop: Loop) -> list[Any]:
        def project(g: Tensor, step: int) -> Tensor:
            kept = self.kept
            draw = np.random.default_rng([loop.seed, loop.at, step])
            chosen = draw.permutation(len(kept))[: self.settings.samples]
            return projected(g, loop.gradient([kept[i] for i in chosen], "loss"))

        return [Projected(loop, project)] if self.memory else []
