"""The measures of a matrix, against hand-made ones."""

import pytest

from adaptome.continual import measures


def test_the_measures_of_three_tasks():
    found = measures([[0.9, None, None], [0.5, 0.8, None], [0.6, 0.4, 0.7]])
    assert found["average"] == pytest.approx((0.6 + 0.4 + 0.7) / 3)
    assert found["plasticity"] == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert found["bwt"] == pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)
    assert found["incremental"] == pytest.approx((0.9 + 0.65 + 1.7 / 3) / 3)


def test_forgetting_is_from_the_best_not_from_the_first():
    found = measures([[0.5, None, None], [0.9, 0.8, None], [0.6, 0.8, 0.7]])
    assert found["forgetting"] == pytest.approx((0.3 + 0.0) / 2) and found["bwt"] == pytest.approx(0.05)


def test_of_errors_a_rise_is_forgetting():
    assert measures([[0.1, None], [0.4, 0.2]], greater_is_better=False)["forgetting"] == pytest.approx(0.3)


def test_a_joint_run_has_an_average_alone():
    assert measures([[0.5, 0.7]]) == {"average": pytest.approx(0.6)}
    assert set(measures([[0.5]])) == {"average", "plasticity", "incremental"}


def test_a_last_row_with_gaps_is_refused():
    with pytest.raises(ValueError, match="last row"):
        measures([[0.5, None]])
