"""Which cases of a product are run every time: so few that everything is covered once. The others are marked slow.

A case of the grid joins a method, a place, and perhaps a precision. Most faults show in two of them joined, so most tests run every
two of them joined ('pairs'). What hangs on the mechanism more than on where it sits (copying, detaching, seeds) is shown by every
method and on every place ('each'); which meet there differs from test to test. `make test-all` runs the whole product.
"""

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import pytest

Case = tuple[Any, ...]
Covers = Callable[[Case], Iterable[Hashable]]


def each(case: Case) -> Iterable[Hashable]:
    """Every value by itself."""
    return enumerate(case)


def pairs(case: Case) -> Iterable[Hashable]:
    """Every two values together."""
    return itertools.combinations(enumerate(case), 2)


def covering(test: str, cases: Sequence[Case], covers: Covers) -> set[Case]:
    """A subset that covers all that the cases cover; always the same for a test, and another for another test."""
    seen: set[Hashable] = set()
    chosen = set()
    for case in random.Random(test).sample(cases, len(cases)):
        made = set(covers(case))
        if not made <= seen:
            seen |= made
            chosen.add(case)
    return chosen


def cases_of(
    names: str, cases: Sequence[Case], covers: Covers, times: int = 1, **how: Any
) -> Callable[[Any], Any]:
    """Parametrise a test with the cases, all but those that `covering` chooses marked slow; what is covered is so by up to `times` cases."""

    def put(test: Any) -> Any:
        rounds = [f"{test.__name__}{n or ''}" for n in range(times)]
        chosen = set().union(*(covering(name, cases, covers) for name in rounds))
        made = [
            pytest.param(*case, id="-".join(map(str, case)).replace("torch.", ""), marks=() if case in chosen else pytest.mark.slow)
            for case in cases
        ]  # fmt: skip
        return pytest.mark.parametrize(names.split(), made, **how)(test)

    return put
