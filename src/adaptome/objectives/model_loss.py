"""model: the loss that the model computes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptome.objectives.base import Objective, Seen, output, register_objective


@register_objective("model")
class ModelLoss(Objective):
    """The loss that the model, or the task's trainer, computes itself: what is minimised when a recipe names no objective."""

    per_item = True

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        found: Tensor = output(outputs, "loss", "the objective 'model'")
        return found
