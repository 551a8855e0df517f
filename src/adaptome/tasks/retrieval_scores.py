"""Scores of pictures and texts that are compared by their vectors: retrieval both ways, and compositionality.

R@k, text to image     share of the texts whose picture is among the k nearest
R@k, image to text     share of the pictures of whose texts one is among the k nearest
SugarCrepe             s(I, caption) > s(I, negative), arXiv:2306.14610
Winoground             text: s(0,0) > s(0,1) and s(1,1) > s(1,0);  image: s(0,0) > s(1,0) and s(1,1) > s(0,1);  group: both, arXiv:2204.03162
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

KS = (1, 5, 10)


def recalls(
    images: np.ndarray, texts: np.ndarray, owners: np.ndarray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """R@k both ways, and their mean over ways and ks. Of equals the right one comes last, so that vectors that are all the same reach nothing.

    Args:
        images [n, d], texts [m, d]: of any length. owners [m]: each text's picture.
    """
    s = unit(texts) @ unit(images).T
    texts_rank = (s >= s[np.arange(len(texts)), owners][:, None]).sum(1) - 1
    own = owners[:, None] == np.arange(len(images))[None]
    best = np.where(own, s, -np.inf).max(0)
    images_rank = ((s >= best) & ~own).sum(0)
    told = {f"t2i_recall_{k}": float((texts_rank < k).mean()) for k in ks}
    told |= {f"i2t_recall_{k}": float((images_rank < k).mean()) for k in ks}
    first = (told["t2i_recall_1"] + told["i2t_recall_1"]) / 2 if 1 in ks else None
    mean = float(np.mean(list(told.values())))
    return {**({} if first is None else {"recall_1": first}), **told, "mean_recall": mean}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] brought to length 1, in float32: in bfloat16 near ones change places."""
    vectors = np.asarray(vectors, dtype=np.float32)
    made: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return made


def composed(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What rows of similarities reach.

    A row has `similarity` [images, texts] and `right`, how many of its texts are the picture's, the first ones; two pictures with two texts are
    Winoground's; more than one right text: all must be above every other (SugarCrepe++).
    """
    told: dict[str, list[float]] = {}
    for row in rows:
        s, right = np.asarray(row["similarity"]), int(row.get("right", 1))
        if s.shape == (2, 2):
            text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
            image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
            for name, holds in (
                ("text_score", text),
                ("image_score", image),
                ("group_score", text and image),
            ):
                told.setdefault(name, []).append(float(holds))
        elif s.shape[0] == 1 and s.shape[1] > right > 0:
            told.setdefault("composed", []).append(float(s[0, :right].min() > s[0, right:].max()))
    return {name: float(np.mean(values)) for name, values in told.items()}
