"""Facts reach adapters without going through the model's signature."""

import pytest

import adaptome as ad
from adaptome.core.errors import StateError
from adaptome.core.steer import require


def test_contexts_nest_replace_and_end():
    assert ad.steered("task") is None and ad.steered("task", "none") == "none"
    with ad.steer(task="depth", quality=1):
        with ad.steer(task="normals"):
            assert (ad.steered("task"), ad.steered("quality")) == ("normals", 1)
        assert require("task", "mtlora") == "depth"
    assert ad.steered("task") is None


def test_facts_end_when_the_block_fails():
    with pytest.raises(ZeroDivisionError), ad.steer(task="depth"):
        1 / 0  # noqa: B018
    assert ad.steered("task") is None


def test_a_fact_that_is_needed_says_how_to_give_it():
    with pytest.raises(
        StateError,
        match=r"mtlora needs to know 'task': run the model inside `with ad.steer\(task=...\):`. Known now: nothing.",
    ):
        require("task", "mtlora")
    with ad.steer(quality=1), pytest.raises(StateError, match=r"Known now: \['quality'\]"):
        require("task", "mtlora")
