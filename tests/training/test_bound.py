"""The least work of a run, and its share of what the machine can do."""

import pytest
import torch
from torch import nn

from adaptome.training.bound import Pace, matmul_rate, operations


def test_a_frozen_weight_costs_four_operations_a_token_and_a_trained_one_six():
    model = nn.Sequential(
        nn.Embedding(9, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)
    ).requires_grad_(False)
    assert operations(model) == 4 * (35 + 21)
    model[3].requires_grad_(True)
    assert operations(model) == 4 * 35 + 6 * 21


def test_the_rate_is_of_the_clock_that_is_given():
    clock = iter(range(1000))
    assert matmul_rate(size=8, seconds=4, now=lambda: float(next(clock))) == 2 * 8**3


def test_the_share_is_the_least_work_over_the_machines(monkeypatch):
    monkeypatch.setattr("adaptome.training.bound.matmul_rate", lambda *args, **kwargs: 1000.0)
    model = nn.Sequential(nn.Linear(5, 7)).requires_grad_(False)
    pace = Pace()
    assert pace.share(model) is None
    pace.see({"pixel_values": torch.zeros(2, 3)}, 1.0)
    assert pace.share(model) is None
    pace.see({"input_ids": torch.zeros(2, 3)}, 1.5)
    pace.see({"input_ids": torch.zeros(2, 2)}, 0.5)
    assert pace.share(model) == pytest.approx(4 * 35 * 10 / 2.0 / 1000)
