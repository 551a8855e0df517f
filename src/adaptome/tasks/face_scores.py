r"""Scores of face recognition, from likenesses: verification, identification in a closed set and in an open one, and templates.

tar_at_f     share of pairs of one person above the threshold that lets a share f of the pairs of different people through, or less
auroc, eer   of these pairs; where there are more than 4,000,000, of all of one person and of so many others drawn at random
accuracy     of a fold's pairs at the threshold that is best on all other folds, mean over folds (LFW's)
rank_k       share of the probes whose person is in the gallery that have a picture of theirs among the k likest
tpir_at_f    share of these whose likest picture is theirs and above the threshold that a share f of the probes of nobody in the gallery pass, or less
threshold    the likeness at the first of the false accept rates, from which on `predict` says that two faces are of one person
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptome.tasks.detection_scores import detection_metrics

#: pairs of different people that are looked at, where all are too many
MOST = 4_000_000
#: probes, and pairs, whose likenesses are held at a time
PROBES, PAIRS = 256, 1 << 16


def unit(features: np.ndarray) -> np.ndarray:
    """Rows at length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def pooled(
    features: np.ndarray, members: np.ndarray, kind: str = "unit", quality: np.ndarray | None = None
) -> np.ndarray:
    """Templates [t, D] at length 1, of the features [n, D] of their members.

    Args:
        members: the number of each row's template [n].
        kind: the mean of directions (unit), of features as they are, whose length speaks for them (raw), or of directions weighed by
            quality.
        quality: of each row [n], for the last.
    """
    rows = features if kind == "raw" else unit(features)
    if kind == "quality" and quality is not None:
        rows = rows * np.clip(quality, 0.05, None)[:, None]
    made = np.zeros((int(members.max()) + 1, rows.shape[1]))
    np.add.at(made, members, rows)
    return unit(made)


def threshold_at(different: np.ndarray, rate: float) -> float:
    """The likeness above which a share `rate` of the different pairs lies, or less: that many of them are above it, and no more."""
    order = np.sort(different)[::-1]
    return float(order[min(int(rate * len(order)), len(order) - 1)])


def verification(likeness: np.ndarray, same: np.ndarray, rates: Sequence[float]) -> dict[str, float]:
    """auroc, eer, threshold, and tar_at_f for each rate that there are enough pairs of different people for.

    Args:
        likeness: of pairs [n]. same: whether a pair is of one person [n].
    """
    found = detection_metrics(likeness, same.astype(int))
    different, own = likeness[~same], likeness[same]
    made = {"auroc": found["auroc"], "eer": found["eer"], "threshold": threshold_at(different, rates[0])}
    for rate in rates:
        if rate * len(different) >= 1:
            made[f"tar_at_{rate:g}"] = float((own > threshold_at(different, rate)).mean())
    return made


def fold_accuracy(likeness: np.ndarray, same: np.ndarray, folds: np.ndarray) -> float:
    """See `accuracy` above; pairs, and the fold of each [n]."""
    shares = []
    for fold in np.unique(folds):
        inside = folds == fold
        edge = best_threshold(likeness[~inside], same[~inside])
        shares.append(((likeness[inside] >= edge) == same[inside]).mean())
    return float(np.mean(shares))


def best_threshold(likeness: np.ndarray, same: np.ndarray) -> float:
    """The likeness from which on pairs are to be taken for one person's, so that most are right."""
    order = np.argsort(-likeness, kind="stable")
    right = np.cumsum(np.where(same[order], 1, -1))
    best = int(right.argmax())
    after = likeness[order[best + 1]] if best + 1 < len(order) else likeness[order[best]] - 1e-6
    return float((likeness[order[best]] + after) / 2)


def identification(
    likeness: np.ndarray,
    probes: np.ndarray,
    gallery: np.ndarray,
    ranks: Sequence[int],
    rates: Sequence[float],
) -> dict[str, float]:
    """rank_k, and where probes of nobody in the gallery are among them tpir_at_f.

    Args:
        likeness: [p, g]. probes, gallery: whose each is [p], [g]; distractors have numbers of their own.
    """
    return ranked_scores(*standing(likeness, probes, gallery), ranks, rates)


def searched(
    probes: np.ndarray,
    gallery: np.ndarray,
    who: np.ndarray,
    whose: np.ndarray,
    ranks: Sequence[int],
    rates: Sequence[float],
) -> dict[str, float]:
    """`identification` of directions [p, D] in a gallery [g, D], some probes at a time: of a large gallery the likenesses are not all held."""
    parts = [slice(start, start + PROBES) for start in range(0, len(probes), PROBES)]
    found = [standing(probes[part] @ gallery.T, who[part], whose) for part in parts]
    before, best_own, best = (np.concatenate(column) for column in zip(*found, strict=True))
    return ranked_scores(before, best_own, best, ranks, rates)


def standing(
    likeness: np.ndarray, probes: np.ndarray, gallery: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each probe how many items stand before its person's own, the likeness of theirs (-inf where none is), and of the likest [p]."""
    own = probes[:, None] == gallery[None]
    best_own = np.where(own, likeness, -np.inf).max(1)
    # of as many items as are likest: those level with a person's own picture stand before it
    before = ((likeness >= best_own[:, None]) & ~own).sum(1)
    return before, best_own, likeness.max(1)


def ranked_scores(
    before: np.ndarray, best_own: np.ndarray, best: np.ndarray, ranks: Sequence[int], rates: Sequence[float]
) -> dict[str, float]:
    """rank_k and tpir_at_f of what `standing` tells."""
    known = best_own > -np.inf
    if not known.any():
        return {}
    made = {f"rank_{k}": float((before[known] < k).mean()) for k in ranks}
    strangers = best[~known]
    for rate in rates:
        if rate * len(strangers) >= 1:
            edge = threshold_at(strangers, rate)
            made[f"tpir_at_{rate:g}"] = float(((before[known] == 0) & (best_own[known] > edge)).mean())
    return made


def all_pairs(people: np.ndarray, most: int = MOST, seed: int = 0) -> np.ndarray:
    """Every two of n items [m, 2]; where these are more than `most`, all of one person and so many others drawn at random.

    Args:
        people: whose each is [n].
    """
    n = len(people)
    if n * (n - 1) // 2 <= most:
        return np.stack(np.triu_indices(n, 1), 1)
    same = np.concatenate([rows[np.stack(np.triu_indices(len(rows), 1), 1)] for rows in _by_person(people)])
    drawn = np.random.default_rng(seed).integers(0, n, (most, 2))
    return np.concatenate([same, drawn[people[drawn[:, 0]] != people[drawn[:, 1]]]])


def crossed_pairs(
    probes: np.ndarray, gallery: np.ndarray, most: int = MOST, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of probes and of items of the gallery [m], [m], everyone with every one; where these are more than `most`, likewise.

    Args:
        probes, gallery: whose each is [p], [g].
    """
    p, g = len(probes), len(gallery)
    if p * g <= most:
        return np.repeat(np.arange(p), g), np.tile(np.arange(g), p)
    order = np.argsort(gallery, kind="stable")
    first, after = (np.searchsorted(gallery[order], probes, side) for side in ("left", "right"))
    counts = after - first
    inside = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, p, most), rng.integers(0, g, most)
    others = probes[a] != gallery[b]
    own = order[np.repeat(first, counts) + inside]
    return np.concatenate([np.repeat(np.arange(p), counts), a[others]]), np.concatenate([own, b[others]])


def alike(a: np.ndarray, b: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Likenesses [m] of directions a[rows] and b[others], some pairs at a time."""
    made = [
        np.einsum("nd,nd->n", a[rows[at : at + PAIRS]], b[others[at : at + PAIRS]])
        for at in range(0, len(rows), PAIRS)
    ]
    return np.concatenate(made) if made else np.zeros(0)


def _by_person(people: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(people, kind="stable")
    return np.split(order, np.cumsum(np.bincount(people))[:-1])
