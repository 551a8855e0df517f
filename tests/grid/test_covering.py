"""What is run every time covers what it says, and is few."""

import itertools

import pytest

from .covering import covering, each, pairs

CASES = list(itertools.product(range(20), "abcdefgh", (16, 32)))


@pytest.mark.parametrize("covers", [each, pairs])
@pytest.mark.parametrize("left_out", [0, 40])
def test_all_that_the_product_covers_is_covered(covers, left_out):
    cases = CASES[left_out:]
    chosen = covering("a test", cases, covers)
    assert chosen <= set(cases)
    assert {one for case in chosen for one in covers(case)} == {one for case in cases for one in covers(case)}
    assert len(chosen) < len(cases) * (0.75 if covers is pairs else 0.25)


def test_the_choice_is_a_tests_own_and_always_the_same():
    first, again, other = (covering(name, CASES, pairs) for name in ("one", "one", "other"))
    assert first == again != other
