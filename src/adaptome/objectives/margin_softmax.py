r"""margin-softmax: cross-entropy over cosines, the right class handicapped by a margin.

    o_k = s cos(theta_k) for k != y,    o_y = s m(theta_y)

    arcface   m = cos(theta + m), and cos(theta) - m sin(m) where theta + m would pass pi     Deng et al. 2018, arXiv:1801.07698
    cosface   m = cos(theta) - m                                                             Wang et al. 2018, arXiv:1801.09414
    adaface   m = cos(theta + g) - (m q + m),  g = -m q,                                      Kim et al. 2022, arXiv:2204.00964
              q = clip((|z| - mu) h / sigma, -1, 1), mu and sigma running over batches, h = 0.333

The model's logits are the cosines: a head of normalised rows on normalised features. AdaFace reads the features' norms too. A head that gives
the cosines to some of the classes only says itself which of its columns is a row's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Objective, Seen, TermSettings, column, output, register_objective

#: keeps the angle's derivative finite
EPS = 1e-6
MARGINS = {"arcface": 0.5, "cosface": 0.35, "adaface": 0.4}


class MarginSoftmaxSettings(TermSettings):
    kind: Literal["arcface", "cosface", "adaface"] = Field(
        default="arcface", description="where the margin is put"
    )
    scale: float = Field(default=64.0, gt=0, description="s, of the cosines")
    margin: float | None = Field(
        default=None, ge=0, description="m; default: 0.5 for arcface, 0.35 for cosface, 0.4 for adaface"
    )
    h: float = Field(default=0.333, gt=0, description="adaface: concentration of the norms")
    momentum: float = Field(
        default=0.01, gt=0, le=1, description="adaface: share of the batch in the running mean and deviation"
    )
    cosines: str = Field(default="logits", description="output with the cosines [batch, classes]")
    norms: str = Field(default="norms", description="adaface: output with the features' norms [batch]")
    labels: str = Field(default="labels", description="the batch's column of class numbers")
    targets: str = Field(
        default="targets",
        description="output with the right columns, of a model whose cosines are to some classes only",
    )


@register_objective("margin-softmax")
class MarginSoftmax(Objective):
    """Softmax over cosines with a margin at the right class: ArcFace, CosFace, AdaFace."""

    Settings = MarginSoftmaxSettings

    @property
    def margin(self) -> float:
        return MARGINS[self.settings.kind] if self.settings.margin is None else self.settings.margin

    def parts(self, model: nn.Module) -> nn.Module | None:
        return Norms(self.settings.momentum) if self.settings.kind == "adaface" else None

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        settings, asking = self.settings, "the objective 'margin-softmax'"
        cosines = output(outputs, settings.cosines, asking).float()
        if cosines.detach().abs().max() > 1.01:
            raise TrainingError(
                f"{asking} needs cosines, and {settings.cosines!r} reaches {float(cosines.detach().abs().max()):.3g}.\n"
                "  Give the model a head of normalised rows on normalised features, or use cross-entropy."
            )
        labels = self.targets(outputs, batch, asking).to(cosines.device)
        row = torch.arange(len(labels), device=labels.device)
        right = cosines[row, labels].clamp(-1 + EPS, 1 - EPS)
        quality = None
        if settings.kind == "adaface":
            assert isinstance(seen.parts, Norms)
            norms = output(outputs, settings.norms, asking).detach().float().clamp(0.001, 100)
            quality = seen.parts(norms.flatten(), seen.model.training, settings.h)
        margined = with_margin(right, self.margin, settings.kind, quality)
        logits = cosines.index_put((row, labels), margined.to(cosines.dtype))
        return nn.functional.cross_entropy(settings.scale * logits, labels)

    def targets(self, outputs: Any, batch: Mapping[str, Any], asking: str) -> Tensor:
        """The right classes' columns [batch]: the model's own where it gives them, else the batch's labels."""
        name = self.settings.targets
        own = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        found: Tensor = column(batch, self.settings.labels, asking) if own is None else own
        return found


def with_margin(right: Tensor, m: float, kind: str, quality: Tensor | None = None) -> Tensor:
    """The right classes' cosines [batch] with their margin; `quality` [batch] in [-1, 1] is AdaFace's q."""
    if kind == "cosface":
        return right - m
    angle = right.arccos()
    if kind == "arcface":
        return torch.where(angle + m <= math.pi, (angle + m).cos(), right - m * math.sin(m))
    assert quality is not None
    return (angle - m * quality).clamp(EPS, math.pi - EPS).cos() - (m * quality + m)


class Norms(nn.Module):
    """Running mean and deviation of the features' norms, which tell an image's quality."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.tensor(20.0))  # the authors' starts
        self.register_buffer("deviation", torch.tensor(100.0))

    def forward(self, norms: Tensor, training: bool, h: float) -> Tensor:
        """q [batch]."""
        if training and len(norms) > 1:
            self.mean.lerp_(norms.mean().to(self.mean), self.momentum)
            self.deviation.lerp_(norms.std().to(self.mean), self.momentum)
        return ((norms - self.mean) / (self.deviation + 1e-3) * h).clamp(-1, 1)
