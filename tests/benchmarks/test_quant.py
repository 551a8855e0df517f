"""`benchmarks/quant.py` in its smallest form."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def quant(monkeypatch):
    """The script, with sources for docstrings: reading the whole library takes long."""
    for path in (BENCHMARKS, BENCHMARKS / "claims"):
        monkeypatch.syspath_prepend(str(path))
    for name in ("quant", "_letters", "_harness"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import _letters
    import quant

    text = _letters.code("heapq shlex")
    monkeypatch.setattr(quant, "prose", lambda: text)
    return quant


@pytest.mark.slow
def test_it_makes_a_row_for_every_base_and_method(quant, capsys):
    small = ["--hidden", "64", "--blocks", "1", "--pretrain", "2", "--steps", "1", "--rounds", "1"]
    quant.main([*small, "--only", "uniform-4", "sketch-4", "--json"])
    rows = {row["base"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["full", "bf16", "uniform-4", "sketch-4"]
    assert [rows[b]["bits"] for b in ("full", "bf16")] == [32, 16]
    assert rows["uniform-4"]["bits"] == pytest.approx(4 + 24 / 64)  # a scale and a zero point for 64 numbers
    for key in ("ram", "disk"):
        assert rows["uniform-4"][key] < rows["bf16"][key] < rows["full"][key]
    assert rows["bf16"]["step"] == 1.0 and all(
        row["step"] > 0 and row["perplexity"] > 1 for row in rows.values()
    )
    assert (
        "l4q r=4, 4 bits" in rows["full"]["methods"] and "l4q r=4, 4 bits" not in rows["uniform-4"]["methods"]
    )
    assert "sketchtune" in rows["sketch-4"]["methods"] and "sketchtune" not in rows["uniform-4"]["methods"]
    assert (
        rows["uniform-4"]["methods"]["qwha r=4"]["trainable"]
        == rows["uniform-4"]["methods"]["lora r=4"]["trainable"]
    )
    assert all(m["after"] > 1 for row in rows.values() for m in row["methods"].values())
