"""How far a classifier's probabilities can be trusted: the ROC curve, and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Probabilities [n, labels] of n examples, and their label numbers [n].

    ROC: the second label is the positive one (of two). Calibration: of the likeliest label's probability, whose mean in
    each of ten equal bins is held against the share that is right; the expected calibration error is the mean of the
    differences, weighted by the examples in the bins (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """

    probabilities: np.ndarray
    truth: np.ndarray

    def roc(self) -> dict[str, Any] | None:
        """False and true positive rates and auroc; None unless there are two labels, which both occur."""
        from sklearn.metrics import roc_auc_score, roc_curve

        if self.probabilities.shape[1] != 2 or len(np.unique(self.truth)) != 2:
            return None
        positive = self.probabilities[:, 1]
        false, true, _ = roc_curve(self.truth, positive)
        keep = np.unique(np.linspace(0, len(false) - 1, 200).round().astype(int))
        return {
            "fpr": false[keep].tolist(),
            "tpr": true[keep].tolist(),
            "auroc": float(roc_auc_score(self.truth, positive)),
        }

    def calibration(self, bins: int = 10) -> dict[str, Any]:
        """Of every bin that is not empty: mean confidence, share right and examples; and ece, the expected calibration error."""
        from sklearn.calibration import calibration_curve

        confidence = self.probabilities.max(1).clip(0, 1)
        right = self.probabilities.argmax(1) == self.truth
        shares, means = calibration_curve(right, confidence, n_bins=bins)
        # the same bins as calibration_curve's: an example on an edge is in the one below
        places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
        counts = np.bincount(places, minlength=bins)
        counts = counts[counts > 0]
        error = float((np.abs(shares - means) * counts).sum() / len(right))
        return {
            "confidence": means.tolist(),
            "right": shares.tolist(),
            "examples": counts.tolist(),
            "ece": error,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: `calibration`, and `roc` where there is one."""
        roc = self.roc()
        return {"calibration": self.calibration(), **({"roc": roc} if roc else {})}


def softmax_scores(logits: Any, labels: Any) -> Scores:
    """Scores of a classifier of one label an example: logits [n, labels] and label numbers [n]."""
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return Scores(powers / powers.sum(-1, keepdims=True), np.asarray(labels))
