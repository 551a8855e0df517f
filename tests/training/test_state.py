"""State files: what goes in comes out bit for bit, and what cannot go in is said."""

import math
import random

import numpy as np
import pytest
import torch

from adaptome.core.errors import CheckpointError, TornFileError
from adaptome.training.rng import random_state, set_random_state
from adaptome.training.state import read_state, write_state


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_everything_comes_back_as_it_was(tmp_path):
    value = {
        "tensors": [torch.randn(3, 5), torch.tensor(7), torch.ones(2, dtype=torch.bfloat16), torch.zeros(0)],
        "shared": (torch.arange(6)[::2], torch.arange(6).view(2, 3).T),
        "numbers": [0.1, 1e-323, math.inf, -math.inf, math.nan, 2**70, -3, True, None],
        3: {"nested": {True: ["a", ("b", ())], 2.5: {}}},
        "tensor": {"dict": "names that the format uses itself"},
    }
    write_state(tmp_path, "x", value)
    assert same(read_state(tmp_path, "x"), value)


def test_tensors_that_share_memory_are_both_stored(tmp_path):
    whole = torch.arange(6.0)
    write_state(tmp_path, "x", [whole, whole, whole[1:4]])
    assert same(read_state(tmp_path, "x"), [whole, whole, whole[1:4]])


@pytest.mark.parametrize("value", [object(), {1, 2}, np.float64(1.0), lambda: 0, {(1, 2): 3}])
def test_anything_else_is_refused_with_its_place(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"x\.a\.1 is a"):
        write_state(tmp_path, "x", {"a": [1, value]})


@pytest.mark.parametrize("damage", ["json", "tensors", "both"])
def test_damaged_files_are_told(tmp_path, damage):
    write_state(tmp_path, "x", {"a": torch.ones(3)})
    if damage != "tensors":
        (tmp_path / "x.json").write_text('{"dict": [["a", {"tens')
    if damage != "json":
        (tmp_path / "x.safetensors").unlink()
    with pytest.raises(TornFileError, match="cannot be read back"):
        read_state(tmp_path, "x")


def draws():
    return random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3).tolist()


def test_random_states_survive_the_disk(tmp_path):
    draws()  # gauss and normal keep a second number for the next call
    write_state(tmp_path, "random", random_state([]))
    first = draws()
    draws()
    set_random_state(read_state(tmp_path, "random"), [])
    assert draws() == first
