"""Figures of several dense tasks: what is counted of each picture, what follows from the counts of a split, and the overall gain.

    classes     mean IoU over classes, from one confusion matrix over the split
    saliency    IoU, the mean over pictures, at the best of 15 thresholds from 0.2 to 0.9
    edges       F1 at the best of these thresholds over the split, pixel by pixel, without a tolerance (no odsF)
    normals     mean angle in degrees over all known pixels, which papers of this line call rmse; and the root of the mean square, `rms`
    depth       root of the mean square, and mean share of the true depth

source  MTLoRA, arXiv:2403.20320, and Polyhistor, arXiv:2210.03265
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptome.tasks.pixel_scores import IGNORED, confusion, mean_iou

THRESHOLDS = tuple(np.linspace(0.2, 0.9, 15).tolist())
#: kind -> the figure that overall gains are of, and whether less of it is better
FIGURES = {"classes": ("miou", False), "saliency": ("iou", False), "edges": ("f1", False), "normals": ("angle", True), "depth": ("rmse", True)}  # fmt: skip


def counted(kind: str, found: Tensor, truth: Tensor) -> Tensor:
    """What a kind's figures need of each picture [batch, n], in float64.

    Args:
        found: a task's maps [batch, outputs, h, w]. truth: its labels.
    """
    if kind == "classes":
        return confusion(found.argmax(1), truth, found.shape[1]).flatten(1).double()
    if kind in ("saliency", "edges"):
        return _at_thresholds(found[:, 0].float().sigmoid(), truth).flatten(1)
    if kind == "normals":
        known = truth.abs().sum(-1) > 0
        cosine = (F.normalize(found.double().movedim(1, -1), dim=-1) * F.normalize(truth.double(), dim=-1)).sum(-1)  # fmt: skip
        angles = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        return _sums(known, angles, angles**2)
    known = truth > 0
    error = (found[:, 0].double() - truth.double()).abs()
    return _sums(known, error**2, error / truth.double().clamp(min=1e-12))


def _sums(known: Tensor, *values: Tensor) -> Tensor:
    parts = [known.double(), *(torch.where(known, value, 0.0) for value in values)]
    return torch.stack([part.flatten(1).sum(1) for part in parts], 1)


def _at_thresholds(scores: Tensor, truth: Tensor) -> Tensor:
    """Hits, false alarms and misses at each threshold: [batch, thresholds, 3]."""
    known, there = truth != IGNORED, truth == 1
    made = []
    for threshold in THRESHOLDS:
        said = (scores > threshold) & known
        parts = (said & there, said & ~there, ~said & there & known)
        made.append(torch.stack([part.flatten(1).sum(1) for part in parts], 1))
    return torch.stack(made, 1).double()


def figures(kind: str, counts: np.ndarray) -> dict[str, float]:
    """The figures of a kind, from the counts [pictures, n] of a split."""
    if kind == "classes":
        side = round(counts.shape[1] ** 0.5)
        return mean_iou(counts.sum(0).reshape(side, side))
    if kind in ("saliency", "edges"):
        hit, false, missed = np.moveaxis(counts.reshape(len(counts), len(THRESHOLDS), 3), -1, 0)
        if kind == "edges":
            hit, false, missed = (part.sum(0) for part in (hit, false, missed))
            return {"f1": float((2 * hit / np.maximum(2 * hit + false + missed, 1)).max())}
        union = hit + false + missed
        return {"iou": float(np.where(union > 0, hit / np.maximum(union, 1), 1.0).mean(0).max())}
    number, first, second = np.maximum(counts.sum(0), [1, 0, 0])
    if kind == "normals":
        return {"angle": float(first / number), "angle_rms": float((second / number) ** 0.5)}
    return {"rmse": float((first / number) ** 0.5), "absrel": float(second / number)}


def delta_m(found: Mapping[str, float], single: Mapping[str, float], less: Mapping[str, bool]) -> float:
    r"""The overall gain over models of one task each, in percent.

        100 / T sum_t (-1)^{l_t} (M_t - S_t) / S_t,    l_t = 1 where less is better

    Args:
        found, single: figure by task, of the model and of those of one task. less: where less of it is better.
    """
    gains = [(found[t] - single[t]) / single[t] * (-1 if less[t] else 1) for t in single]
    return 100 * sum(gains) / len(gains)
