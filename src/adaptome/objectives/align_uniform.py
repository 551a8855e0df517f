r"""align-uniform: features of one class lie together, all features spread over the sphere.

    L = a L_align + u L_unif
    L_align = mean over i < j with y_i = y_j of |z_i - z_j|^alpha          0 where there is no such pair
    L_unif  = log max(mean over i < j of exp(-t |z_i - z_j|^2), 1e-6)      0 where there is no pair

of features z of length 1, with 0 <= L_align <= 4 and -4 t <= L_unif <= 0. Wang and Isola 2020, arXiv:2005.10242, section 4;
with labels: GenD, arXiv:2508.06248.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.objectives.base import (
    Needs,
    Objective,
    Seen,
    TermSettings,
    column,
    features,
    register_objective,
)

FLOOR = 1e-6


class AlignUniformSettings(TermSettings):
    align: float = Field(default=0.1, ge=0, description="a, the share of alignment")
    uniform: float = Field(default=0.5, ge=0, description="u, the share of uniformity")
    alpha: float = Field(default=2.0, gt=0, description="power of the distance in alignment")
    t: float = Field(default=2.0, gt=0, description="sharpness of the potential in uniformity")
    features: str = Field(
        default="auto", description="output with the features [batch, width]; auto: see `objectives.features`"
    )
    labels: str = Field(default="labels", description="the batch's column of class numbers")


@register_objective("align-uniform")
class AlignUniform(Objective):
    """Alignment of the features of one class, uniformity of all."""

    Settings = AlignUniformSettings

    def needs(self) -> Needs:
        return Needs(hidden_states=self.settings.features == "hidden_states")

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        asking, settings = "the objective 'align-uniform'", self.settings
        z = features(outputs, batch, settings.features, asking).float()
        z = seen.gather(nn.functional.normalize(z, dim=-1))
        y = seen.gather(column(batch, settings.labels, asking).to(z.device))
        return settings.align * alignment(z, y, settings.alpha) + settings.uniform * uniformity(z, settings.t)


def alignment(z: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean of |z_i - z_j|^alpha over unordered pairs of one label: z [n, width] of length 1, y [n]; 0 without such a pair."""
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    same = y[i] == y[j]
    if not same.any():
        return z.sum() * 0.0
    squares = (z[i[same]] - z[j[same]]).square().sum(-1)
    return (squares if alpha == 2 else squares.clamp(min=1e-12).pow(alpha / 2)).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """log of the mean potential exp(-t |z_i - z_j|^2) over unordered pairs: z [n, width] of length 1; 0 without a pair."""
    if len(z) < 2:
        return z.sum() * 0.0
    # pdist's own gradient at equal rows is 0, as it should be
    return torch.pdist(z).square().mul(-t).exp().mean().clamp(min=FLOOR).log()
