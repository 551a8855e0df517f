"""Losses of dense tasks by their kind, over the pixels that are known.

    classes     cross-entropy; 255 is not known
    saliency    binary cross-entropy, positives weighed by the batch's share of negatives
    edges       binary cross-entropy, positives weighed by 0.95
    normals     L1 between the predicted and the true direction, both of length 1; (0, 0, 0) is not known
    depth       L1; what is not above 0 is not known

source  the multi-task recipe of MTLoRA, arXiv:2403.20320, and its authors' code, which Polyhistor's (arXiv:2210.03265) is alike
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.objectives.binary_cross_entropy import weighed

Kind = Literal["classes", "saliency", "edges", "normals", "depth"]
#: the class number of a pixel that is not known
IGNORED = 255


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits [batch, K, h, w] over the known pixels of labels [batch, h, w]; 0 where there are none."""
    total = nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def hard_pixel_loss(logits: Tensor, labels: Tensor, threshold: float = 0.7, least: int = 16) -> Tensor:
    """The mean cross-entropy over the pixels whose own class has a probability below `threshold`; over the worst 1 / `least` of the known
    ones where fewer have (online hard example mining, arXiv:1604.03540, as segmentation has it).
    """
    each = nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="none")
    known = each[labels != IGNORED]
    if not known.numel():
        return each.sum()
    hard = known[known > -math.log(threshold)]
    count = max(known.numel() // least, 1)
    return hard.mean() if hard.numel() >= count else known.topk(count).values.mean()


def saliency_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits [batch, 1, h, w] and labels [batch, h, w] of 0 and 1."""
    known = labels != IGNORED
    return weighed(logits[:, 0].float()[known], labels[known].float(), "balanced")


def edge_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits [batch, 1, h, w] and labels [batch, h, w] of 0 and 1."""
    known = labels != IGNORED
    return weighed(logits[:, 0].float()[known], labels[known].float(), 0.95)


def normals_loss(maps: Tensor, directions: Tensor) -> Tensor:
    """Of maps [batch, 3, h, w] and directions [batch, h, w, 3]; the mean over known pixels and their three numbers."""
    known = directions.abs().sum(-1) > 0
    found = F.normalize(maps.float().movedim(1, -1)[known], dim=-1)
    total = (found - F.normalize(directions.float()[known], dim=-1)).abs().sum()
    return total / (3 * known.sum()).clamp(min=1)


def depth_loss(maps: Tensor, depths: Tensor) -> Tensor:
    """Of maps [batch, 1, h, w] and depths [batch, h, w]."""
    known = depths > 0
    total = (maps[:, 0].float()[known] - depths.float()[known]).abs().sum()
    return total / known.sum().clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": pixel_loss,
    "saliency": saliency_loss,
    "edges": edge_loss,
    "normals": normals_loss,
    "depth": depth_loss,
}
