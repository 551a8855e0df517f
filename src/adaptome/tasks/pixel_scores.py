"""Figures over pixels, from one confusion matrix over a whole split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: the class number of a pixel that is not known
IGNORED = 255


def confusion(predicted: Tensor, truth: Tensor, count: int) -> Tensor:
    """How many known pixels of each picture are of class i and predicted as j: [batch, count, count], int64.

    Args:
        predicted, truth: class numbers [batch, h, w]; `IGNORED` in truth is left out.
    """
    predicted, truth = predicted.flatten(1).long(), truth.flatten(1).long()
    rows = torch.arange(len(truth), device=truth.device)[:, None]
    known = truth != IGNORED
    cells = ((rows * count + truth) * count + predicted)[known]
    made = torch.bincount(cells, minlength=len(truth) * count * count)
    return made.view(len(truth), count, count)


def binary_metrics(counts: np.ndarray) -> dict[str, float]:
    """Of the class 1 of two, from counts [2, 2] over a whole split (truth by prediction): IoU, F1, precision, recall; and overall accuracy.

    A figure whose denominator is 0 is 0, and all are 1 where the class is neither there nor predicted.
    """
    (tn, fp), (fn, tp) = np.asarray(counts, dtype=np.float64)
    nothing = tp + fp + fn == 0

    def share(part: float, of: float) -> float:
        return float(part / of) if of else float(nothing)

    return {
        "iou": share(tp, tp + fp + fn),
        "f1": share(2 * tp, 2 * tp + fp + fn),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "accuracy": share(tp + tn, tp + tn + fp + fn),
    }


def mean_iou(counts: np.ndarray, names: Sequence[str] | None = None) -> dict[str, float]:
    """The mean over classes of IoU, from counts [K, K] over a whole split; classes neither there nor predicted are left out.

    Args:
        names: of the classes; each one's own is then told too, as `iou_<name>`.
    """
    counts = np.asarray(counts, dtype=np.float64)
    hit, union = np.diagonal(counts), counts.sum(0) + counts.sum(1) - np.diagonal(counts)
    there = union > 0
    each = np.divide(hit, union, out=np.zeros_like(hit), where=there)
    found = {"miou": float(each[there].mean()) if there.any() else 0.0}
    if names is not None:
        found |= {f"iou_{name}": float(v) for name, v, t in zip(names, each, there, strict=True) if t}
    return found
