"""The step benchmark: what it counts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

import adaptome as ad

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "step", raising=False)
    import step

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
    monkeypatch.setitem(step.SHAPES, "small", tiny)
    monkeypatch.setitem(step.BATCH, "small", (2, 16))
    return step


def test_a_row_counts_products_and_kept_bytes_in_multiples_of_the_floor(step):
    frozen, inputs = step.base("small", "cpu", torch.float32), step.batch("small", "cpu", torch.float32)
    args = argparse.Namespace(no_peft=True, shape="small", rounds=1, compile=False)
    row = step.measure("lora", args, frozen, inputs)
    assert row["trainable"] == 2 * 16 * (4 * 64 + 3 * 80)
    # three products with A and three with B a token, beside two with each weight
    extra = 3 * 2 * 32 * row["trainable"]
    floor = step.products(step.open_input(frozen), inputs)
    assert row["ours_products"] == pytest.approx(1 + extra / floor, rel=1e-6)
    assert row["ours_bytes"] > 1 and row["ours_time"] > 0
    assert "lora" in step.text(row)


def test_methods_go_where_they_belong(step):
    for name, count in (("ia3", None), ("paca", 14), ("norm-tuning", 5)):
        model = step.ours(step.base("small", "cpu", torch.float32), ad.get_method(name))
        sites = len(ad.adapters(model)["default"].adapters)
        assert count is None or sites == count
