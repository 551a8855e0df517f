"""The numbers of a comparison's table, against scipy's own tests and by hand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from scipy import stats

from adaptome.cli._live import LiveTable
from adaptome.compare import Comparison, Row, Step
from adaptome.compare.table import holm, paired


def made(greater: bool = True, **rows: tuple[int, list[float]]) -> Comparison:
    found = [
        Row(label, label, None, size, 0.1, 0.1, values, sum(values) / len(values), 0.0, 1.0, 1.0, [])
        for label, (size, values) in rows.items()
    ]
    return Comparison("out", "text-classification", "accuracy", greater, "test", [0, 1, 2], found)


def test_a_paired_test_is_scipys():
    one, other = [0.81, 0.84, 0.80, 0.83], [0.80, 0.80, 0.79, 0.80]
    mean, half, p = paired(one, other)
    wanted = stats.ttest_rel(one, other)
    interval = wanted.confidence_interval(0.95)
    assert p == pytest.approx(wanted.pvalue)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    assert paired([0.5, 0.5], [0.5, 0.5]) == (0, 0, 1) and paired([2.0, 3.0], [1.0, 2.0])[2] == 0


def test_many_pairs_are_corrected_for_their_number():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_a_tie_is_called_one_whatever_the_order_of_the_means():
    found = made(a=(10, [0.80, 0.82, 0.84]), b=(20, [0.81, 0.80, 0.86]), c=(5, [0.10, 0.12, 0.14]))
    ties = {(p.one, p.other): p.tie for p in found.pairs}
    assert ties == {("b", "a"): True, ("b", "c"): False, ("a", "c"): False}
    assert all(p.tie == (p.p > 0.05) for p in found.pairs)


@pytest.mark.parametrize(("greater", "front"), [(True, ["c", "a"]), (False, ["c"])])
def test_the_front_holds_what_nothing_smaller_beats(greater, front):
    found = made(greater, a=(10, [0.8] * 3), b=(20, [0.7] * 3), c=(5, [0.1] * 3), d=(5, [0.1] * 3))
    assert [row.label for row in found.pareto] == front


def test_a_live_table_tells_what_is_done_and_how_long_it_will_take():
    screen = io.StringIO()
    with LiveTable([0, 1], Console(file=screen, width=120)) as table:
        for step in (
            Step("lora", None, False, None, 0, 6, 0.0),
            Step("lora", None, True, 0.003, 4, 6, 40.0),
            Step("lora", 0, False, None, 4, 6, 40.0),
            Step("lora", 0, True, 0.75, 5, 6, 50.0),
        ):
            table(step)
    shown = screen.getvalue()
    for part in ("lora", "0.003", "1 of 2", "0.7500", "5 of 6 runs, 00:00:50, about 00:00:10 to go"):
        assert part in shown, part
