"""Metrics that tasks share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptome.core.errors import MissingExtraError


def classification_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """accuracy, macro_f1 (mean over the labels that occur) and mcc (Matthews), of label numbers [n]."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(truth, predicted)),
    }


def multi_label_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """micro_f1, macro_f1 and accuracy (all labels of a row right), of zeros and ones [n, labels]."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, predicted)),
    }


def span_metrics(predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 of entities as conlleval counts them, and the accuracy of tags.

    Args:
        predicted, truth: IOB2 tags of every sentence.
    """
    try:
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    except ModuleNotFoundError as error:
        if error.name != "seqeval":
            raise
        raise MissingExtraError("seqeval", "train") from None
    sides = [list(s) for s in truth], [list(s) for s in predicted]
    return {
        "f1": float(f1_score(*sides, zero_division=0)),
        "precision": float(precision_score(*sides, zero_division=0)),
        "recall": float(recall_score(*sides, zero_division=0)),
        "accuracy": float(accuracy_score(*sides)),
    }
