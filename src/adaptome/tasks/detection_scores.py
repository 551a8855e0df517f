"""Scores of detectors: frames make a video's score, videos a data set's figures, data sets their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Pooling = Literal["mean", "median"]


def per_video(
    scores: np.ndarray, truth: np.ndarray, videos: np.ndarray, pooling: Pooling = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth of videos, each of equal weight however many frames it has, in whatever order.

    Args:
        scores, truth: of frames [n]. videos: the number of the video that a frame is of [n].
        pooling: what a video's score is of its frames'.
    """
    pool = np.mean if pooling == "mean" else np.median
    _, first, which = np.unique(videos, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    parts = np.split(np.asarray(scores, float)[order], np.cumsum(np.bincount(which))[:-1])
    return np.array([pool(part) for part in parts]), np.asarray(truth)[first]


def detection_metrics(
    scores: np.ndarray, truth: np.ndarray, fprs: Sequence[float] = (0.1,)
) -> dict[str, float]:
    """auroc, eer, map, and tpr_at_<f> for each f: of scores [n] that are higher for what is fake, and truth [n], 1 for fake.

    eer is where the shares of missed fakes and of real ones taken for fake are equal, on the straight line between two thresholds;
    map is the mean over both classes of the average precision; tpr_at_<f> is the best true positive rate at a false positive
    rate of f or less.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "eer": _crossing(fpr, 1 - tpr),
        "map": float(
            np.mean(
                [
                    average_precision_score(truth, scores),
                    average_precision_score(1 - truth, -np.asarray(scores)),
                ]
            )
        ),
        **{f"tpr_at_{f:g}": float(tpr[fpr <= f].max()) for f in fprs},
    }


def _crossing(rising: np.ndarray, falling: np.ndarray) -> float:
    """Where two curves meet, of which one rises from 0 to 1 and one falls from 1 to 0."""
    after = int(np.argmax(rising >= falling))
    if after == 0:
        return float(rising[0])
    above, below = (rising - falling)[after], (falling - rising)[after - 1]
    share = below / (below + above)
    return float(rising[after - 1] + share * (rising[after] - rising[after - 1]))


def table(
    scores: np.ndarray,
    truth: np.ndarray,
    videos: np.ndarray,
    sets: np.ndarray,
    names: Sequence[str],
    fprs: Sequence[float] = (0.1,),
    pooling: Pooling = "mean",
) -> dict[str, float]:
    """The figures of frames over videos and data sets: `auroc` is the mean over data sets, `auroc@name` that of one.

    `frame_auroc` counts frames in place of videos. Where there is one data set, its own figures are the means and are not repeated.

    Args:
        scores, truth, videos: see `per_video`. sets: the number of a frame's data set [n], in `names`.
    """
    found: dict[str, dict[str, float]] = {}
    for number in np.unique(sets):
        rows = np.asarray(sets) == number
        whole = detection_metrics(*per_video(scores[rows], truth[rows], videos[rows], pooling), fprs)
        frames = detection_metrics(scores[rows], truth[rows])["auroc"]
        found[names[int(number)]] = {**whole, "frame_auroc": frames}
    kinds = next(iter(found.values()))
    means = {kind: float(np.mean([one[kind] for one in found.values()])) for kind in kinds}
    if len(found) == 1:
        return means
    return means | {f"{kind}@{name}": one[kind] for kind in kinds for name, one in found.items()}
