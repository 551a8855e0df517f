"""Truth values between 0 and 1: how they are joined, and how scores become them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["sigmoid", "min-max", "softmax"]
TNorm = Literal["product", "min"]
Join = Callable[[Tensor, Tensor], Tensor]

#: conjunctions and, by De Morgan, their disjunctions: a or b = not (not a and not b)
AND: dict[str, Join] = {"product": torch.mul, "min": torch.minimum}
OR: dict[str, Join] = {"product": lambda a, b: a + b - a * b, "min": torch.maximum}

#: what min-max leaves of a row's least score, so that no product is 0
LEAST = 1e-2


def truth(scores: Tensor, normalization: str) -> Tensor:
    """Truth values [..., N] of scores [..., N] over all entities.

    sigmoid of each score alone; min-max: (x - min) / (max - min) along the row, at least 0.01, and 1 all along a row of equal scores;
    softmax along the row.
    """
    if normalization == "sigmoid":
        return scores.sigmoid()
    if normalization == "softmax":
        return scores.softmax(-1)
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    equal = high == low
    scaled = (scores - low) / torch.where(equal, 1.0, high - low)
    return torch.where(equal, 1.0, scaled.clamp_min(LEAST))
