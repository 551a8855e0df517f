r"""activation-density: the share of activations that are not zero, in a form that has a gradient.

    L = 1/L sum_l mean over tokens and units of phi(o_l)
    eps:   phi(o) = o^2 / (o^2 + eps)          what the authors' code has; half at |o| = sqrt(eps)
    tanh:  phi(o) = tanh(beta |o|)             unverified form of the paper's text; offered as an option

of what enters the last map of every MLP, or of the modules that `targets` names. DEFT: Runwal et al. 2024, arXiv:2402.01911.
`density` counts exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adaptome.objectives.base import Needs, Objective, Seen, TermSettings, Watch, register_objective


class ActivationDensitySettings(TermSettings):
    phi: Literal["eps", "tanh"] = Field(default="eps", description="what stands for 'is not zero'")
    eps: float = Field(default=1e-7, gt=0, description="smoothing of eps")
    beta: float = Field(default=20.0, gt=0, description="steepness of tanh")
    targets: str | list[str] = Field(
        default="down", description="modules whose input or output is looked at: roles or patterns"
    )
    of: Literal["input", "output"] = Field(
        default="input", description="with targets=down: the activations of the MLPs"
    )


@register_objective("activation-density")
class ActivationDensity(Objective):
    """Fewer activations that are not zero."""

    Settings = ActivationDensitySettings

    def needs(self) -> Needs:
        return Needs(watch=Watch(self.settings.targets, self.settings.of, self._smooth))

    def _smooth(self, o: Tensor) -> Tensor:
        if self.settings.phi == "tanh":
            return (self.settings.beta * o.float().abs()).tanh().mean()
        squares = o.float().square()
        return (squares / (squares + self.settings.eps)).mean()

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        return torch.stack(
            [value.to(seen.watched[next(iter(seen.watched))].device) for value in seen.watched.values()]
        ).mean()


def density(o: Tensor, mask: Tensor | None = None, threshold: float = 0.0) -> Tensor:
    """The exact share of activations beyond the threshold: o [batch, tokens, units], mask [batch, tokens] of the tokens that count."""
    dense = (o.abs() > threshold).float().mean(-1)
    return dense.mean() if mask is None else (dense * mask).sum() / mask.sum().clamp(min=1)
