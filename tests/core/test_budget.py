"""A budget: every method comes as near to a count as its sizes allow."""

import pytest
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MethodError


def model():
    return nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 30, bias=False))


@pytest.mark.parametrize("asked", [190, 700, 3000])
def test_lora_takes_the_nearest_rank(asked):
    plan = ad.plan(model(), "lora", targets=["0", "1"], budget=asked)
    step = (40 + 60) + (60 + 30)
    assert plan.trainable == max(1, round(asked / step)) * step == plan.budget.got
    assert plan.budget.asked == asked and f"{asked:,}" in str(plan)


def test_every_method_with_a_size_solves_it():
    from tests.methods.helpers import roberta

    target = ad.plan(roberta(), "lora", r=8, targets="all-linear").trainable
    for name, method in ad.list_methods().items():
        if method.size_setting() is None or "linear" not in method.hosts:
            continue
        plan = ad.plan(roberta(), name, targets="all-linear", budget="lora:r=8")
        assert plan.budget.asked == target, name
        value = plan.settings[plan.budget.setting]
        assert plan.budget.value == value
        for near in (value - 1, value + 1):
            try:
                other = ad.plan(
                    roberta(), name, targets="all-linear", **{plan.budget.setting: near}
                ).trainable
            except (MethodError, HostError):
                continue
            assert abs(other - target) >= abs(plan.trainable - target), (name, near)


def test_a_falling_count_is_solved_too():
    plan = ad.plan(model(), "randlora", targets=["0", "1"], budget=600)
    counts = {r: ad.plan(model(), "randlora", targets=["0", "1"], r=r).trainable for r in range(1, 64)}
    assert abs(plan.trainable - 600) == min(abs(c - 600) for c in counts.values())


def test_budgets_are_written_in_several_ways():
    base = sum(p.numel() for p in model().parameters())
    assert ad.plan(model(), "lora", targets="0", budget="50%").budget.asked == round(base / 2)
    assert ad.plan(model(), "lora", targets="0", budget="1.5k").budget.asked == 1500
    attached = model()
    assert (
        ad.attach(attached, "lora", targets="0", budget="lora:r=3").trainable
        == 300
        == ad.trainable(attached).count
    )


def test_settings_of_the_method_to_match_are_written_as_words_too():
    assert ad.plan(model(), "lora", targets="0", budget="lora:r=3,init=gaussian").budget.value == 3
    for budget, words in (("lora:r=x", "'x' is a str; it must be int"), ("lora:r", "'' is a str")):
        with pytest.raises(MethodError, match=words):
            ad.plan(model(), "lora", targets="0", budget=budget)


@pytest.mark.parametrize("budget", ["much", "-3", 0, "0%"])
def test_what_is_no_count_is_refused(budget):
    with pytest.raises(MethodError, match="no count of parameters"):
        ad.plan(model(), "lora", targets="0", budget=budget)


def test_a_method_without_a_size_says_what_it_trains():
    with pytest.raises(MethodError, match="bitfit has no size to fit a budget with: it trains 60"):
        ad.plan(model(), "bitfit", targets="0", budget="1%")
