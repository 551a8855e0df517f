"""Figures of sentiment as CMU-MOSI and CMU-MOSEI have it: a number from -3 to 3.

    mae     mean |found - true|
    corr    Pearson's correlation; 0 where either does not vary
    acc7    both rounded to whole numbers from -3 to 3 and equal
    acc2    of the examples that are not 0: the sign is right
    f1      of the same, F1 of both signs, weighed by how often each is true

source      the evaluation of MulT, arXiv:1906.00295
"""

from __future__ import annotations

import numpy as np


def sentiment_figures(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Of numbers [n]."""
    from sklearn.metrics import f1_score

    found, true = (np.asarray(one, dtype=np.float64).reshape(-1) for one in (found, true))
    varies = found.std() > 0 and true.std() > 0
    whole = [np.round(np.clip(one, -3, 3)) for one in (found, true)]
    felt = true != 0
    signs = [one[felt] > 0 for one in (true, found)]
    return {
        "mae": float(np.abs(found - true).mean()),
        "corr": float(np.corrcoef(found, true)[0, 1]) if varies else 0.0,
        "acc7": float((whole[0] == whole[1]).mean()),
        "acc2": float((signs[0] == signs[1]).mean()) if felt.any() else 0.0,
        "f1": float(f1_score(*signs, average="weighted", zero_division=0)) if felt.any() else 0.0,
    }
