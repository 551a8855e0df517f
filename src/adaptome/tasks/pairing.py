"""Fake videos with the real ones they were made of, and without: the check of whether pairs matter (GenD, arXiv:2508.06248).

A detector that sees a fake together with its source cannot tell them apart by what both share: the person, the room, the camera.
`paired` and `unpaired` choose the same real videos and as many fakes; the fakes' sources are these, or others.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.splits import Split

Pairing = Literal["all", "paired", "unpaired"]


def videos_of(split: Split, real: str = "real") -> dict[str, tuple[bool, str]]:
    """Each video: whether it is real, and its pair (its own name for a real one; empty for a fake whose source is not known)."""
    rows = split.rows
    columns = (rows["video"], rows["label"], rows["pair"])
    return {str(v): (label == real, str(pair or "")) for v, label, pair in zip(*columns, strict=True)}


def paired_share(videos: dict[str, tuple[bool, str]]) -> float:
    """The share of fake videos whose source is there as a real one."""
    sources = {pair for is_real, pair in videos.values() if is_real}
    fakes = [pair in sources for is_real, pair in videos.values() if not is_real]
    return float(np.mean(fakes)) if fakes else 0.0


def chosen(split: Split, how: Pairing, seed: int = 0, real: str = "real") -> Split:
    """The rows of the videos that train.

    Args:
        split: with the columns video, label and pair.
        how: all of them; or half of the sources' real videos, with their own fakes, or with as many of the other half's.
        seed: of the draw of sources; the real videos are the same for both.

    Raises:
        DataError: fewer than two sources have both a real and a fake video.
    """
    if how == "all":
        return split
    videos = videos_of(split, real)
    own: dict[str, list[str]] = {}
    fakes: dict[str, list[str]] = {}
    for name, (is_real, pair) in sorted(videos.items()):
        (own if is_real else fakes).setdefault(pair, []).append(name)
    sources = sorted(pair for pair in own if pair and pair in fakes)
    half = len(sources) // 2
    if not half:
        raise DataError(
            f"{split.source}: task.pairing={how!r} needs two sources that have both a real and a fake video; there are {len(sources)}."
        )
    order = [sources[i] for i in np.random.default_rng(seed).permutation(len(sources))]
    kept: set[str] = set()
    for one, other in zip(order[:half], order[half : 2 * half], strict=True):
        count = min(len(fakes[one]), len(fakes[other]))
        kept |= {*own[one], *fakes[one if how == "paired" else other][:count]}
    rows = [row for row, video in enumerate(split.rows["video"]) if str(video) in kept]
    return split.select(rows)
