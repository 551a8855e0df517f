r"""dice: one less the overlap of what is predicted and what is there, which does not fade where the class is rare.

    L = 1 - (2 sum_n p_n y_n + s) / (sum_n p_n + sum_n y_n + s),    p = sigmoid(o)

over the known pixels of the batch; s (`smooth`) keeps a batch without the class finite. Of two logits a pixel, o is the second less the first.

source    Milletari et al. 2016, V-Net, arXiv:1606.04797, with the sums themselves in place of their squares
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adaptome.objectives.base import Objective, Seen, register_objective
from adaptome.objectives.binary_cross_entropy import PixelSettings


class DiceSettings(PixelSettings):
    smooth: float = Field(default=1.0, gt=0, description="s, in pixels")


@register_objective("dice")
class Dice(Objective):
    """One less the overlap of prediction and truth, by pixel."""

    Settings = DiceSettings

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        found = self.settings.pixels(outputs, batch, "the objective 'dice'")
        return torch.stack([dice(o, y, self.settings.smooth) for o, y in found]).mean()


def dice(o: Tensor, y: Tensor, smooth: float = 1.0) -> Tensor:
    """L of logits o [N] and labels y [N]."""
    p = o.sigmoid()
    return 1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth)
