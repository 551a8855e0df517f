"""The leaderboard: rows for what runs, reasons for what does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import adaptome as ad


@pytest.fixture(scope="module")
def leaderboard() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import leaderboard
    finally:
        sys.path.pop(0)
    return leaderboard


def test_methods_train_and_what_a_model_does_not_admit_is_told(leaderboard, capsys):
    assert leaderboard.main(["--methods", "lora", "bitfit", "petalface", "--steps", "8", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert [rows[m]["category"] for m in ("lora", "bitfit")] == ["reparameterisation", "selective"]
    assert (
        0 < rows["lora"]["letters"] < 1 and 0 < rows["lora"]["images"] < 1 and rows["lora"]["parameters"] > 0
    )
    assert 0 < rows["petalface"]["images"] < 1  # runs with its example facts
    assert "nothing in LlamaForCausalLM has" in rows["bitfit"]["letters"] and rows["bitfit"]["images"] < 1


def test_when_time_is_up_the_rest_is_named(leaderboard, capsys):
    assert leaderboard.main(["--methods", "lora", "--seconds", "0"]) == 0
    shown = capsys.readouterr().out
    assert "lora, letters: time is up" in shown and shown.startswith("category")


def test_every_method_has_small_sizes_and_rows_are_sorted_by_category(leaderboard):
    for name in ad.list_methods():
        leaderboard.small(name)
    rows = [
        {"category": "b", "method": "x", "letters": 0.5, "images": "refused"},
        {"category": "a", "method": "y", "letters": "refused", "images": "refused"},
        {"category": "a", "method": "z", "letters": 0.9, "images": 0.1},
    ]
    assert [row["method"] for row in sorted(rows, key=leaderboard.order)] == ["z", "y", "x"]
