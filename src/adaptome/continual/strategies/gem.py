r"""gem: a step that would raise the loss on the memory of any earlier task is projected to the nearest that raises none.

    min_z |z - g|^2  subject to  G z >= 0,    rows of G: the gradients on the memories;    z = g + G'v,  v = argmin_{v>=0} |G'v + g|

Lopez-Paz & Ranzato 2017, arXiv:1706.08840, eqs. 8-12; the dual is solved as non-negative least squares.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adaptome.continual.loop import Loop
from adaptome.continual.memory import MemorySettings, WithMemory
from adaptome.continual.projection import Projected
from adaptome.continual.strategy import register_strategy


class GEMSettings(MemorySettings):
    margin: float = Field(default=0.0, ge=0, description="least v: biases the step towards the old tasks")


def nearest_agreeing(g: Tensor, G: Tensor, margin: float = 0.0) -> Tensor:
    """z of a gradient [n] and the memories' gradients [tasks, n]."""
    if bool((G @ g >= 0).all()):
        return g
    from scipy.optimize import nnls

    q, r = torch.linalg.qr(G.double().T)  # |G'v + g| = |r v + q'g| + what v does not reach
    v, _ = nnls(r.cpu().numpy(), -(q.T @ g.double()).cpu().numpy())
    return (g.double() + G.double().T @ (torch.from_numpy(v).to(g.device) + margin)).to(g.dtype)


@register_strategy("gem")
class GEM(WithMemory):
    """Never step against any earlier task's gradient."""

    Settings = GEMSettings

    def callbacks(self, loop: Loop) -> list[Any]:
        def project(g: Tensor, step: int) -> Tensor:
            rows = [[row for row in self.kept if row in of] for of in earlier]
            return nearest_agreeing(
                g, torch.stack([loop.gradient(r, "loss") for r in rows if r]), self.settings.margin
            )

        earlier = [set(loop.stream.parts[n].train) for r in loop.rounds[: loop.at] for n in r]
        return [Projected(loop, project)] if self.memory else []
