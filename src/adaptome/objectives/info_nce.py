r"""info-nce: each example's two embeddings are told from those of the other examples.

    L = -1/N sum_i log exp(u_i . v_i / t) / sum_j exp(u_i . v_j / t),    u, v of length 1

and the same with u and v exchanged, of which the mean is taken. Examples of all processes are among the others.
van den Oord et al. 2018, arXiv:1807.03748, equation 4; both directions: Radford et al. 2021, arXiv:2103.00020, figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.objectives.base import Needs, Objective, Seen, TermSettings, features, register_objective

#: scales beyond this make the softmax a maximum (arXiv:2103.00020, section 2.5)
MOST = math.log(100.0)


class InfoNCESettings(TermSettings):
    left: str = Field(
        default="text_embeds", description="output with u [batch, width]; auto: see `objectives.features`"
    )
    right: str = Field(
        default="image_embeds", description="output with v; second: what left names, of the second view"
    )
    temperature: float = Field(default=0.07, gt=0, description="t; where it is trained, its start")
    learnable: bool = Field(default=False, description="train log(1/t), kept at or below log 100")
    directions: Literal["both", "left", "right"] = Field(
        default="both", description="left: from u to v alone"
    )
    normalise: bool = Field(default=True, description="bring the embeddings to length 1")


@register_objective("info-nce")
class InfoNCE(Objective):
    """Two embeddings of one example are nearer than those of different examples: two outputs, or one output of two views."""

    Settings = InfoNCESettings

    def needs(self) -> Needs:
        return Needs(
            hidden_states="hidden_states" in (self.settings.left, self.settings.right),
            second=self.settings.right == "second",
        )

    def parts(self, model: nn.Module) -> nn.Module | None:
        return Scale(math.log(1 / self.settings.temperature)) if self.settings.learnable else None

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        u, v = self._pair(outputs, batch, seen)
        if self.settings.normalise:
            u, v = nn.functional.normalize(u, dim=-1), nn.functional.normalize(v, dim=-1)
        u, v = seen.gather(u), seen.gather(v)
        scale = seen.parts() if seen.parts is not None else 1 / self.settings.temperature
        scores, right = scale * u @ v.t(), torch.arange(len(u), device=u.device)
        ways = {"left": [scores], "right": [scores.t()], "both": [scores, scores.t()]}[
            self.settings.directions
        ]
        return torch.stack([nn.functional.cross_entropy(way, right) for way in ways]).mean()

    def _pair(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> tuple[Tensor, Tensor]:
        asking, left, right = "the objective 'info-nce'", self.settings.left, self.settings.right
        u = features(outputs, batch, left, asking)
        v = (
            features(outputs, batch, right, asking)
            if seen.second is None
            else features(seen.second, batch, left, asking)
        )
        wide = torch.promote_types(u.dtype, torch.float32)
        return u.to(wide), v.to(wide)


class Scale(nn.Module):
    """1 / t, trained by its logarithm."""

    def __init__(self, start: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.log_scale.clamp(max=MOST).exp()
