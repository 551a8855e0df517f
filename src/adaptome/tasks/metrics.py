"""Metrics that tasks share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, MissingExtraError, did_you_mean


def classification_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """accuracy, macro_f1 (mean over the labels that occur) and mcc (Matthews), of label numbers [n]."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(truth, predicted)),
    }


def recall_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """war and uar of label numbers [n]: recall weighted by how often a class is, which is the accuracy, and its mean over the classes that occur."""
    from sklearn.metrics import accuracy_score, recall_score

    there = np.unique(truth)
    return {
        "war": float(accuracy_score(truth, predicted)),
        "uar": float(recall_score(truth, predicted, labels=there, average="macro", zero_division=0)),
    }


def multi_label_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """micro_f1, macro_f1 and accuracy (all labels of a row right), of zeros and ones [n, labels]."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, predicted)),
    }


def span_metrics(
    predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], strict: bool = False
) -> dict[str, float]:
    """precision, recall and f1 of entities from counts summed over all types (micro), and the accuracy of tags.

    Args:
        predicted, truth: IOB2 tags of every sentence.
        strict: only what begins with B- is an entity; otherwise an I- without its B- begins one too, as conlleval counts.
    """
    try:
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
        from seqeval.scheme import IOB2
    except ModuleNotFoundError as error:
        if error.name != "seqeval":
            raise
        raise MissingExtraError("seqeval", "train") from None
    sides = [list(s) for s in truth], [list(s) for s in predicted]
    how: dict[str, Any] = {"average": "micro", "zero_division": 0}
    if strict:
        if not any(tag != "O" for side in sides for tags in side for tag in tags):
            return {
                "f1": 0.0,
                "precision": 0.0,
                "recall": 0.0,
                "accuracy": 1.0,
            }  # seqeval fails without any entity
        how |= {"mode": "strict", "scheme": IOB2}
    return {
        "f1": float(f1_score(*sides, **how)),
        "precision": float(precision_score(*sides, **how)),
        "recall": float(recall_score(*sides, **how)),
        "accuracy": float(accuracy_score(*sides)),
    }


def delta_m(
    scores: Mapping[str, float], single: Mapping[str, float], lower_is_better: Collection[str] = ()
) -> float:
    """The mean relative gain in percent of a multi-task model over models of one task each (Maninis et al. 2019, arXiv:1904.08918).

    Args:
        scores: the model's score in every task.
        single: the score of the task's own model.
        lower_is_better: the tasks whose score is an error.

    Raises:
        DataError: the tasks of the three differ.
    """
    if scores.keys() != single.keys() or not scores:
        raise DataError(
            f"delta_m: scores are of {sorted(scores)}, those to compare with of {sorted(single)}."
        )
    for task in lower_is_better:
        if task not in scores:
            raise DataError(f"delta_m: there is no task {task!r}.{did_you_mean(task, scores)}")
    gains = [(scores[t] - single[t]) / single[t] * (-1 if t in lower_is_better else 1) for t in scores]
    return 100 * float(np.mean(gains))


#: from 0.2 to 0.9
SALIENCY_THRESHOLDS = np.linspace(0.2, 0.9, 15)


def saliency_metrics(probability: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """max_iou and max_f: the best over 15 thresholds of the images' mean intersection over union, and F with beta^2 = 0.3.

    Args:
        probability: of a salient pixel, [images, height, width].
        truth: zeros and ones, likewise.
    """
    real, ious, fs = np.asarray(truth, bool), [], []
    for threshold in SALIENCY_THRESHOLDS:
        found = np.asarray(probability) > threshold
        both, either = (found & real).sum((1, 2)), (found | real).sum((1, 2))
        ious.append(np.mean(np.where(either, both / np.maximum(either, 1), 1.0)))
        precision = np.mean(both / np.maximum(found.sum((1, 2)), 1))
        recall = np.mean(both / np.maximum(real.sum((1, 2)), 1))
        fs.append(1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    return {"max_iou": float(max(ious)), "max_f": float(max(fs))}


def normals_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """mean and rmse of the angle in degrees between surface normals [..., 3]; where the true one is zero, a pixel does not count.

    Public code calls the mean "rmse".
    """
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    length = np.linalg.norm(truth, axis=-1)
    a, b = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (predicted, truth))
    angle = np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))[length > 0]
    if not angle.size:
        raise DataError("normals_metrics: no pixel has a true normal.")
    return {"mean": float(angle.mean()), "rmse": float(np.sqrt((angle**2).mean()))}
