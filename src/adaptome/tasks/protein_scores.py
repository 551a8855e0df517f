"""Scores of generated protein sequences that need no outside server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptome.proteins import Nearest, divergence, low_complexity, read_folds

#: sequences with their properties
Known = list[tuple[str, str]]


def measures(good: Known, own: Known, known: Known) -> dict[str, float]:
    """Of valid sequences: how many are unlike each other, their complexity, their composition beside the split's, and the nearest training sequence.

    Args:
        good: valid written sequences, with what was asked for. own: those of the split. known: those of training, none where they were not read.
    """
    sequences = [sequence for sequence, _ in good]
    low = [low_complexity(sequence) for sequence in sequences]
    found = {
        "unique": len({*sequences}) / max(len(sequences), 1),
        "low_complexity": float(np.mean(low)) if low else 1.0,
        "composition_divergence": divergence(sequences, [sequence for sequence, _ in own]),
    }
    if known:
        nearest = Nearest([sequence for sequence, _ in known])
        found["nearest_identity"] = float(np.mean([nearest(s)[0] for s in sequences])) if sequences else 0.0
    return found


def by_property(good: Known, own: Known, known: Known, total: int) -> dict[str, float]:
    """How often a classifier finds the property that was asked for: of all `total` texts, for what is not valid is not right; of each property's valid ones; and of the split's own."""
    classify = classifier(known)
    told = classify([s for s, _ in good]) if good else []
    right = [a == of for a, (_, of) in zip(told, good, strict=True)]
    of_each = defaultdict[str, list[bool]](list)
    for is_right, (_, of) in zip(right, good, strict=True):
        of_each[of].append(is_right)
    checked = [a == of for a, (_, of) in zip(classify([s for s, _ in own]), own, strict=True)]
    return {
        "property_accuracy": sum(right) / total,
        "classifier_accuracy": float(np.mean(checked)),
        **{f"property_accuracy_{of}": float(np.mean(each)) for of, each in sorted(of_each.items())},
    }


def classifier(known: Known) -> Callable[[Sequence[str]], Any]:
    """Sequences -> properties: logistic regression on shares of 1- to 3-mers, trained on known sequences with their properties."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    counted = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, sublinear_tf=True)
    fit = make_pipeline(counted, LogisticRegression(C=10, max_iter=1000, class_weight="balanced"))
    fit.fit([s for s, _ in known], [of for _, of in known])
    predict: Callable[[Sequence[str]], Any] = fit.predict
    return predict


def folded(sequences: Sequence[str], folds: Path) -> dict[str, float]:
    """Mean pLDDT and TM-score by an outside tool, and the share of the sequences that it has, each under its own letters as its name."""
    held, different = read_folds(folds), list(dict.fromkeys(sequences))
    there = [held[s] for s in different if s in held]
    made = {"folded": len(there) / max(len(different), 1)}
    for kind in ("plddt", "tm"):
        values = [one[kind] for one in there if kind in one]
        made |= {kind: float(np.mean(values))} if values else {}
    return made
