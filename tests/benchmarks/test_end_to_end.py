"""The end-to-end benchmark: what it compares, and a run of both contenders in small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def end_to_end(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import end_to_end

    return end_to_end


def result(speed, peak, losses):
    return {
        "tokens_per_second": speed, "share_of_bound": 0.5, "peak": peak, "above": peak / 2, "model_bytes": 1, "losses": losses,
    }  # fmt: skip


def test_ratios_are_within_a_round_and_curves_that_part_are_called_out(end_to_end):
    fast, slow = result(30.0, 60, [2.0, 1.0]), result(20.0, 100, [2.0, 1.001])
    drifted = {"ours": result(3.0, 60, [2.0, 1.0]), "peft+trl": result(2.0, 100, [2.0, 1.001])}
    row = end_to_end.summary(True, [{"ours": fast, "peft+trl": slow}, drifted])
    assert row["speed_ratio"] == pytest.approx(1.5) and row["peak_ratio"] == pytest.approx(0.6)
    assert row["equal_losses"] and row["loss_difference"] == pytest.approx(0.001 / 1.001)
    assert "1.50x tokens/s" in end_to_end.text(row) and "equal (" in end_to_end.text(row)
    apart = end_to_end.summary(False, [{"ours": fast, "peft+trl": result(20.0, 100, [2.0, 1.2])}])
    assert not apart["equal_losses"] and "NOT EQUAL" in end_to_end.text(apart)


def test_examples_are_the_same_for_both_and_of_unequal_lengths(end_to_end):
    args = end_to_end.parser().parse_args(["--examples", "20", "--vocabulary", "300"])
    rows = end_to_end.examples(args)
    assert rows == end_to_end.examples(args)
    lengths = {len((row["prompt"] + row["completion"]).split()) for row in rows}
    assert len(lengths) > 10 and max(lengths) <= 510


@pytest.mark.slow
def test_both_contenders_train_alike():
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    sizes = "--hidden 64 --layers 1 --vocabulary 500 --length 32 --batch 2 --steps 3 --rounds 1 --examples 12"
    command = [sys.executable, str(BENCHMARKS / "end_to_end.py"), *sizes.split(), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["packing"] for row in rows] == [False, True]
    for row in rows:
        assert row["equal_losses"] and row["ours/share_of_bound"] > 0
