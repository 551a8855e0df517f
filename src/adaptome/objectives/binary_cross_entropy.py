r"""binary-cross-entropy: whether a pixel is of the one class, the positive ones weighed.

    L = 1/N sum_n [ -w y_n log p_n - v (1 - y_n) log(1 - p_n) ],    p = sigmoid(o)

over the pixels that are known. Of two logits a pixel, o is the second less the first, so that L is their cross-entropy.
weights   plain: w = v = 1. A number: w = it, v = 1 - it (0.95 for edges, MTLoRA). balanced: w = the batch's share of negatives, v = 1 - w
          (Xie and Tu 2015, arXiv:1504.06375; saliency in MTLoRA)
source    MTLoRA, arXiv:2403.20320, with its authors' code; change detection: with dice
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Objective, Seen, TermSettings, column, output, register_objective


class PixelSettings(TermSettings):
    logits: list[str] = Field(
        default=["logits"],
        min_length=1,
        description="the outputs it reads, each [batch, 1 or 2, h, w]; their mean is taken",
    )
    labels: str = Field(default="labels", description="the batch's column: [batch, h, w] of 0 and 1")
    ignored: int = Field(default=255, description="what labels hold where a pixel is not known")

    def pixels(self, outputs: Any, batch: Mapping[str, Any], asking: str) -> list[tuple[Tensor, Tensor]]:
        """Of every output, o [N] and y [N] over the known pixels.

        Raises:
            TrainingError: an output or column that is not there, or has another shape.
        """
        labels = column(batch, self.labels, asking)
        known = labels != self.ignored
        made = []
        for name in self.logits:
            maps: Tensor = output(outputs, name, asking)
            if maps.dim() != labels.dim() + 1 or maps.shape[1] > 2 or maps.shape[-2:] != labels.shape[-2:]:
                raise TrainingError(
                    f"{asking} reads {name!r} of shape {list(maps.shape)} against labels of shape {list(labels.shape)}; "
                    "expected [batch, 1 or 2, h, w] and [batch, h, w]."
                )
            margin = maps[:, 0] if maps.shape[1] == 1 else maps[:, 1] - maps[:, 0]
            made.append((margin.float()[known], labels[known].float()))
        return made


class BinaryCrossEntropySettings(PixelSettings):
    positive: float | Literal["plain", "balanced"] = Field(
        default="plain", description="weight of the positive pixels, below 1, or how it is found"
    )


@register_objective("binary-cross-entropy")
class BinaryCrossEntropy(Objective):
    """The binary cross-entropy by pixel, the positive ones weighed."""

    Settings = BinaryCrossEntropySettings

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        found = self.settings.pixels(outputs, batch, "the objective 'binary-cross-entropy'")
        return torch.stack([weighed(o, y, self.settings.positive) for o, y in found]).mean()


def weighed(o: Tensor, y: Tensor, positive: float | Literal["plain", "balanced"] = "plain") -> Tensor:
    """L of logits o [N] and labels y [N]; 0 of none."""
    losses = F.binary_cross_entropy_with_logits(o, y, reduction="none")
    if positive != "plain":
        w = 1 - y.mean() if positive == "balanced" else positive
        losses = losses * torch.where(y > 0.5, w, 1 - w)
    return losses.sum() / max(len(o), 1)
