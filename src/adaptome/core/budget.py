"""A parameter budget instead of a size: every method solves its own setting for the same count."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaptome.core.errors import AdaptomeError, MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method

#: the largest size tried
LIMIT = 1 << 22


@dataclass(frozen=True)
class Fit:
    """How close a method came to a budget.

    Attributes:
        asked: trainable numbers asked for.
        got: what the method has at the size it chose, heads not counted.
        setting: the setting that was solved, and `value` what it became.
    """

    asked: int
    got: int
    setting: str
    value: int

    def __str__(self) -> str:
        return f"budget {self.asked:,}: {self.setting}={self.value} gives {self.got:,} ({100 * (self.got / self.asked - 1):+.2f} %)"


def parse(budget: str | int, base: int, count_of: Callable[[str], int]) -> int:
    """A budget as a number of parameters.

    Args:
        budget: 20000, '20000', '1.5M', '0.1%' of the base, or 'lora:r=8' for what that method has on the same targets.
        base: parameters of the base.
        count_of: counts a method written as 'name:setting=value,...'.

    Raises:
        MethodError: it is none of these, or not positive.
    """
    text = str(budget).replace("_", "").replace(",", "").strip() if ":" not in str(budget) else str(budget)
    if ":" in text:
        return count_of(text)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[kKmMbB])?", text)
    scale = {"%": base / 100, "k": 1e3, "m": 1e6, "b": 1e9, "": 1.0}
    count = round(float(found[1]) * scale[(found[2] or "").lower()]) if found else 0
    if count < 1:
        raise MethodError(
            f"budget={budget!r} is no count of parameters.\n  Write a number (20000, '1.5M'), a share of the base ('0.1%'), or a method to match ('lora:r=8')."
        )
    return count


def fit(method: Method, hosts: Sequence[Host], asked: int) -> tuple[Method, Fit]:
    """The method with its size set so that it comes nearest to the budget.

    Most counts are monotone in the size (RandLoRA's falls with it; LoKr's saturates); sizes that the method or a layer does not
    admit are passed over.

    Raises:
        MethodError: the method has no size to set.
    """
    setting = method.size_setting()
    if setting is None:
        raise MethodError(
            f"{method.name} has no size to fit a budget with: it trains {_count(method, hosts):,} numbers on these targets.\n  Choose other targets, or another method."
        )

    def count(value: int) -> int | None:
        try:
            sized = method.sized(value)
            for host in hosts:
                sized.fitted(host).check(host)
            return _count(sized, hosts)
        except AdaptomeError:
            return None

    tried: dict[int, int] = {}
    low, value = 1, 1
    while value <= LIMIT:  # powers of two until the budget is passed on either side
        got = count(value)
        if got is None and tried:
            break
        if got is not None:
            saturated = bool(tried) and got == tried[max(tried)]
            tried[value] = got
            if saturated or (len(tried) > 1 and min(tried.values()) <= asked <= max(tried.values())):
                break
        low, value = value, value * 2
    if not tried:
        raise MethodError(f"{method.name} admits no {setting} on these targets.")
    _bisect(count, tried, low, min(value, LIMIT), asked)
    best = _climb(count, tried, asked)
    return method.sized(best), Fit(asked, tried[best], setting, best)


def _bisect(
    count: Callable[[int], int | None], tried: dict[int, int], low: int, high: int, asked: int
) -> None:
    """Narrow the size down between two sizes; where many in a row are refused, the upper part is left out."""
    rising = tried[max(tried)] >= tried[min(tried)]
    while high - low > 1:
        middle = (low + high) // 2
        at = next((v for v in range(middle, min(high, middle + 256)) if count(v) is not None), None)
        if at is None:
            high = middle
            continue
        got = tried[at] = count(at) or 0
        if (got < asked) == rising:
            low = at
        else:
            high = middle


def _climb(count: Callable[[int], int | None], tried: dict[int, int], asked: int) -> int:
    """The nearest size there is beside the nearest one tried."""
    while True:
        best = min(tried, key=lambda v: (abs(tried[v] - asked), v))
        beside = [v for v in (best - 1, best + 1) if v > 0 and v not in tried]
        tried |= {v: got for v in beside if (got := count(v)) is not None}
        if min(tried, key=lambda v: (abs(tried[v] - asked), v)) == best:
            return best


def _count(method: Method, hosts: Sequence[Host]) -> int:
    return sum(method.fitted(host).parameters(host) for host in hosts) + method.shared_parameters(hosts)
