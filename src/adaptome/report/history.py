"""Curves from a trainer's log: what every page of a run shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def points(history: Sequence[Mapping[str, Any]], key: str, over: str = "step") -> list[tuple[float, float]]:
    """The values logged under `key`, over the steps."""
    return [(float(entry[over]), float(entry[key])) for entry in history if key in entry and over in entry]


def smooth(course: Sequence[Sequence[float]], parts: int = 40) -> list[tuple[float, float]]:
    """At most `parts` points, each the mean of its stretch, so that the course is seen and not the noise."""
    size = max(1, -(-len(course) // parts))
    stretches = [course[start : start + size] for start in range(0, len(course), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in stretches]


def logged(history: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """The keys that begin with `prefix`, in the order of their first entry."""
    return list(dict.fromkeys(key for entry in history for key in entry if key.startswith(prefix)))
