"""How much features tell of labels without training their model: nearest neighbours, and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: neighbours that vote, and the temperature of their votes (Wu et al. 2018, arXiv:1805.01978)
NEIGHBOURS, TEMPERATURE = 20, 0.07


def nearest_accuracy(features: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Share of the rows [n, D] whose nearest others, voting by exp(cosine / 0.07), name their label."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    count = min(neighbours, len(labels) - 1)
    chosen = np.argpartition(-near, count - 1, axis=1)[:, :count]
    votes = np.exp((np.take_along_axis(near, chosen, 1) - 1) / TEMPERATURE)
    kinds, numbers = np.unique(labels, return_inverse=True)
    totals = np.zeros((len(labels), len(kinds)))
    for column in range(count):
        totals[np.arange(len(labels)), numbers[chosen[:, column]]] += votes[:, column]
    return float((totals.argmax(1) == numbers).mean())


def linear_accuracy(features: np.ndarray, labels: np.ndarray, folds: int = 5) -> float:
    """Mean accuracy over folds of a logistic regression on standardised features, each fold by what the others taught."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.1))
    return float(cross_val_score(probe, features, labels, cv=parts).mean())


def probed(features: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """`knn` and `linear_probe` of features [n, D]; what the rows are too few for is left out."""
    kinds, counts = np.unique(np.asarray(labels), return_counts=True)
    if len(kinds) < 2:
        return {}
    found = {"knn": nearest_accuracy(features, np.asarray(labels))}
    if counts.min() >= 2:
        found["linear_probe"] = linear_accuracy(features, np.asarray(labels), min(5, int(counts.min())))
    return found
