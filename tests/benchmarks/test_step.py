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


def test_clip_methods_are_timed_on_a_model_of_two_towers(step, monkeypatch):
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {
        "vision_config": {**tower, "patch_size": 112},
        "text_config": {**tower, "vocab_size": 64, "bos_token_id": 62, "eos_token_id": 63},
    }
    monkeypatch.setattr(step, "CLIP", small)
    monkeypatch.setitem(step.BATCH, "clip", (2,))
    frozen, inputs = step.base("clip", "cpu", torch.float32), step.batch("clip", "cpu", torch.float32)
    floor = step.open_input(frozen)
    leaves = []
    for tower in (floor.text_model, floor.vision_model):
        tower.encoder.layers[0].register_forward_pre_hook(
            lambda _m, args: leaves.append(args[0].requires_grad)
        )
    assert floor(**inputs).loss.requires_grad and leaves == [True, True]  # gradients cross both towers
    args = argparse.Namespace(no_peft=False, shape="clip", rounds=1, compile=False)
    for name in ("clip-adapter", "coop", "lora"):
        row = step.measure(name, args, frozen, inputs)
        assert row["trainable"] > 0 and row["ours_time"] > 0 and "peft_time" not in row
    adapted = step.ours(step.base("clip", "cpu", torch.float32), ad.get_method("clip-adapter"))
    assert list(ad.adapters(adapted)["default"].adapters) == ["visual_projection"]


def test_a_table_for_each_number_of_threads_is_printed_and_kept(step, monkeypatch, capsys, tmp_path):
    before = torch.get_num_threads()
    arguments = ["lora", "--no-peft", "--rounds", "1", "--give-back", "--threads", "1", "2", "--keep", str(tmp_path)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["step.py", *arguments])
    try:
        step.main()
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    files = sorted(tmp_path.iterdir())
    assert [file.name[10:] for file in files] == ["-cpu-small-1-threads.txt", "-cpu-small-2-threads.txt"]
    assert printed == "".join(file.read_text() for file in files)
    for threads, file in enumerate(files, 1):
        told, *_, row = file.read_text().splitlines()
        assert f"CPU, {threads} threads" in told and "freed memory given back" in told
        assert row.startswith("lora")
