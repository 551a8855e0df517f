"""The table of a comparison: rows, their intervals, and which of their differences are more than chance.

Seeds pair the rows: with one seed all start from the same data in the same order. A difference is told by the 95 % interval of
its mean over the seeds (Student's t); where it holds zero, the two are a tie.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        label: its name in the table; method and targets as the recipe has them (targets None: the method's own).
        parameters: trained numbers, `share` of all of the model's with them.
        learning_rate: what it was trained with.
        values: the metric for every seed, in the order of the seeds.
        mean: of the values. low, high: ends of its 95 % interval (Student's t); None with one seed.
        seconds: of training, a mean; evaluations in between are not in it.
        history: transformers' log of the first seed.
        evaluation_seconds: of the evaluations during training, a mean.
        step_seconds: of an optimizer step, a mean, evaluations not in it.
        memory: the highest peak of the seeds, bytes.
        budget: what it was sized for; None for its own size.
        metrics: every metric of the runs, means over the seeds.
        classes: label -> share of its test examples that were found, a mean; where predictions are written.
        trials: of the search for its learning rate; 0 where there was none.
    """

    label: str
    method: str
    targets: str | list[str] | None
    parameters: int
    share: float
    learning_rate: float
    values: list[float]
    mean: float
    low: float | None
    high: float | None
    seconds: float
    history: list[dict[str, Any]]
    evaluation_seconds: float = 0.0
    step_seconds: float = 0.0
    memory: int = 0
    budget: int | str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, float] = field(default_factory=dict)
    trials: int = 0


@dataclass(frozen=True)
class Pair:
    """Two rows, seed by seed.

    Attributes:
        difference: mean of `one` less `other`, with its 95 % interval (low, high).
        p: of the paired t test, two-sided; `adjusted` for the number of pairs (Holm).
        tie: the interval holds zero.
    """

    one: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    tie: bool


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison, its rows in the recipe's order."""

    folder: str
    task: str
    metric: str
    greater_is_better: bool
    split: str
    seeds: list[int]
    rows: list[Row]
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Row:
        """The row with the best mean."""
        return (max if self.greater_is_better else min)(self.rows, key=lambda row: row.mean)

    @property
    def ranking(self) -> list[Row]:
        """The rows, best first."""
        return sorted(self.rows, key=lambda row: row.mean, reverse=self.greater_is_better)

    @property
    def rivals(self) -> list[Row]:
        """The rows that are not told apart from the best: by seed, the 95 % interval of their difference holds zero."""
        best, found = self.best, []
        for row in self.ranking:
            differences = [a - b for a, b in zip(best.values, row.values, strict=True)]
            half = half_width(differences)
            if row.label != best.label and (half is None or abs(statistics.fmean(differences)) <= half):
                found.append(row)
        return found

    @property
    def pairs(self) -> list[Pair]:
        """Every two rows, better one first; none with a single seed."""
        if len(self.seeds) < 2:
            return []
        tested = [(a, b, *paired(a.values, b.values)) for a, b in itertools.combinations(self.ranking, 2)]
        adjusted = holm([p for *_, p in tested])
        return [
            Pair(a.label, b.label, mean, mean - half, mean + half, p, corrected, abs(mean) <= half)
            for (a, b, mean, half, p), corrected in zip(tested, adjusted, strict=True)
        ]

    @property
    def pareto(self) -> list[Row]:
        """The rows that no other beats with as few parameters or fewer, smallest first."""
        sign, found = 1 if self.greater_is_better else -1, list[Row]()
        for row in sorted(self.rows, key=lambda row: (row.parameters, -sign * row.mean)):
            if not found or sign * row.mean > sign * found[-1].mean:
                found.append(row)
        return found

    @property
    def by_method(self) -> dict[str, list[Row]]:
        """The rows of each method that has several, best first: its places or its sizes."""
        names = dict.fromkeys(row.method for row in self.rows)
        found = {name: [row for row in self.ranking if row.method == name] for name in names}
        return {name: rows for name, rows in found.items() if len(rows) > 1}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of comparison.json."""
        return {
            **asdict(self),
            "best": self.best.label,
            "ranking": [row.label for row in self.ranking],
            "not_told_apart": [row.label for row in self.rivals],
            "by_method": {name: [row.label for row in rows] for name, rows in self.by_method.items()},
            "pareto": [row.label for row in self.pareto],
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean, by Student's t."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # scikit-learn brings it

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the differences, half of its 95 % interval, and p of the paired t test (two-sided).

    Differences that are all the same have no spread: p is 1 where they are zero, else 0.
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return mean, 0.0, float(mean == 0)
    statistic = mean / (spread / math.sqrt(len(differences)))
    return mean, half_width(differences) or 0.0, float(2 * t.sf(abs(statistic), len(differences) - 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = highest
    return found
