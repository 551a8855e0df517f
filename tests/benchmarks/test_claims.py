"""The claims' own bookkeeping: what a verdict needs, and that a failed one is an error to the shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

CLAIMS = Path(__file__).parents[2] / "benchmarks" / "claims"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CLAIMS))
    monkeypatch.delitem(sys.modules, "_harness", raising=False)
    import _harness

    return _harness


@pytest.mark.parametrize("holds, code", [(True, 0), (False, 1)])
def test_the_exit_code_is_the_verdict(harness, capsys, holds, code):
    def measure(seed, table):
        table.add("a", seed, 10)

    assert harness.run("doc", "loss", measure, lambda table: {"one": True, "two": holds}, []) == code
    printed = capsys.readouterr().out
    assert f"claim holds: {'yes' if holds else 'no'}" in printed
    assert "1.0000 ± 1.0000" in printed  # of 0, 1, 2


def test_json_holds_every_seed(harness, capsys):
    harness.run(
        "doc",
        "loss",
        lambda seed, table: table.add("a", seed),
        lambda t: {"one": True},
        ["--json", "--seeds", "4"],
    )
    assert json.loads(capsys.readouterr().out)["seen"] == {"a": [0, 1, 2, 3]}


def test_two_seeds_are_refused(harness):
    with pytest.raises(SystemExit) as left:
        harness.run("doc", "loss", lambda seed, table: None, lambda table: {}, ["--seeds", "2"])
    assert left.value.code == 2


def test_below_is_meant_seed_by_seed(harness):
    table = harness.Table()
    for a, b in ((1.0, 2.0), (3.0, 4.0), (5.0, 4.9)):
        table.add("a", a)
        table.add("b", b)
    assert not table.below("a", "b")  # its mean is lower, its last seed is not
    assert table.as_good("a", "b", 0.0)
    table.values["a"][2] = 4.0
    assert table.below("a", "b") and not table.below("a", "b", by=0.3)


def test_a_rank_two_update_is_fitted_exactly_by_rank_two_and_not_by_rank_one(harness):
    torch.manual_seed(0)
    W = torch.randn(12, 20) / 4
    goal = W + torch.randn(12, 2) @ torch.randn(2, 20) / 8
    one, two = (harness.fit_matrix(W, goal, "lora", 0, r=r) for r in (1, 2))
    s = torch.linalg.svdvals(goal - W)
    assert two.value < 1e-3
    assert abs(one.value - float(s[1] / s.norm())) < 1e-3  # Eckart-Young
    assert two.parameters == 2 * one.parameters == 64


def test_every_claim_opens_with_its_source_and_is_listed():
    readme = (CLAIMS / "README.md").read_text()
    scripts = [path for path in CLAIMS.glob("*.py") if not path.name.startswith("_")]
    assert len(scripts) >= 8
    for path in scripts:
        opening = path.read_text().split('"""')[1]
        assert "claim  " in opening and "miniature" in opening and "arXiv:" in opening, path.name
        assert path.name in readme
