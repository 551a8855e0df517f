"""What a stream's matrix of scores says. R[i][j]: the score on task j after learning task i.

average        1/T sum_j R[T][j]
bwt            1/(T-1) sum_{j<T} (R[T][j] - R[j][j])                          Lopez-Paz & Ranzato 2017, arXiv:1706.08840
forgetting     1/(T-1) sum_{j<T} (max_{j<=i<T} R[i][j] - R[T][j])             Chaudhry et al. 2018, arXiv:1801.10112
plasticity     1/T sum_j R[j][j]                                              what was learned when it was new
incremental    1/T sum_i mean_{j<=i} R[i][j]                                  the mean over the stream
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def measures(matrix: Sequence[Sequence[float | None]], greater_is_better: bool = True) -> dict[str, float]:
    """The measures of a matrix whose last row is complete; those that need rows that are not there are left out.

    Args:
        matrix: a row for each round of training; one row alone is that of a joint run.
        greater_is_better: False for errors and losses; forgetting is then their rise. `bwt` keeps its sign: a difference of scores.

    Raises:
        ValueError: the last row has gaps.
    """
    R = np.array([[np.nan if v is None else v for v in row] for row in matrix], dtype=np.float64)
    if not R.size or np.isnan(R[-1]).any():
        raise ValueError("the last row of the matrix must have a score for every task.")
    count = R.shape[1]
    found = {"average": float(R[-1].mean())}
    if len(R) < count:
        return found
    own = np.diagonal(R)
    found["plasticity"] = float(own.mean())
    found["incremental"] = float(np.mean([R[i, : i + 1].mean() for i in range(count)]))
    if count > 1:
        before, last, sign = R[:-1, :-1], R[-1, :-1], 1.0 if greater_is_better else -1.0
        best = np.array([(sign * before[j:, j]).max() for j in range(count - 1)])
        found["bwt"] = float((last - own[:-1]).mean())
        found["forgetting"] = float((best - sign * last).mean())
    return found
