"""Orders in which the values of a column become tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.splits import Split

Order = Literal["given", "random", "similar"]


def arranged(values: Sequence[str], how: str, seed: int, train: Split, column: str) -> list[str]:
    """The values of a column in an order.

    Args:
        values: as they first come.
        how: given; random, drawn from the seed; or similar: from the first value on, the one whose texts are the nearest of those left, by
            the cosine of their TF-IDF over single characters and pairs.

    Raises:
        DataError: `similar`, and no other column holds text.
    """
    if how == "given":
        return list(values)
    if how == "random":
        return [values[n] for n in np.random.default_rng(seed).permutation(len(values))]
    near = _likeness(_texts(values, train, column))
    chain, left = [0], set(range(1, len(values)))
    while left:
        chain.append(max(sorted(left), key=lambda n: near[chain[-1], n]))
        left.remove(chain[-1])
    return [values[n] for n in chain]


def _texts(values: Sequence[str], train: Split, column: str) -> list[str]:
    """All texts of each value, in one."""
    gathered: dict[str, list[str]] = {value: [] for value in values}
    for row in train.rows.with_format(None):
        gathered[str(row[column])] += [v for key, v in row.items() if key != column and isinstance(v, str)]
    if not any(gathered.values()):
        raise DataError(
            f"{train.source}: continual.stream.order=similar needs a column of texts beside {column!r}."
        )
    return ["\n".join(texts) for texts in gathered.values()]


def _likeness(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    return (found @ found.T).toarray()
