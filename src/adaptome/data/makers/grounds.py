"""Made data of ground seen from above in two domains: `made:day-grounds`, to pre-train an encoder, and `made:night-grounds`, to adapt it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.grounds import PATTERNS, at_night, by_day
from adaptome.data.splits import Table

#: split -> the last number of its seed
_SPLITS = {"train": 0, "validation": 1, "test": 2}
#: how many pictures of each split are drawn
COUNTS = {
    "day-grounds": {"train": 1600, "validation": 160, "test": 160},
    "night-grounds": {"train": 1600, "validation": 80, "test": 400},
    "few-night-grounds": {"train": 160, "validation": 80},
}


@maker("day-grounds")
def day_grounds(seed: int) -> dict[str, Table]:
    """Columns image [32, 32, 3] and label: one of eight kinds of ground, in the colours of the day."""
    return _drawn("day-grounds", by_day, (seed, 0), COUNTS["day-grounds"])


@maker("night-grounds")
def night_grounds(seed: int) -> dict[str, Table]:
    """The same kinds as a thermal camera sees them."""
    return _drawn("night-grounds", at_night, (seed, 1), COUNTS["night-grounds"])


@maker("few-night-grounds")
def few_night_grounds(seed: int) -> dict[str, Table]:
    """Twenty labelled pictures of each kind at night, others than those of `night-grounds`; the test pictures are the same."""
    few = _drawn("few-night-grounds", at_night, (seed, 2), COUNTS["few-night-grounds"])
    test = {"test": COUNTS["night-grounds"]["test"]}
    return {**few, **_drawn("few-night-grounds", at_night, (seed, 1), test)}


def _drawn(
    name: str,
    draw: Callable[[np.random.Generator, str], np.ndarray],
    seed: tuple[int, int],
    counts: dict[str, int],
) -> dict[str, Table]:
    kinds, made = list(PATTERNS), {}
    for split, count in counts.items():
        rng = np.random.default_rng((*seed, _SPLITS[split]))
        labels = [kinds[i % len(kinds)] for i in range(count)]
        columns: dict[str, Any] = {"image": np.stack([draw(rng, label) for label in labels]), "label": labels}
        made[split] = Table(f"made:{name}", columns, range(1, count + 1), unit=f"{split} picture")
    return made
