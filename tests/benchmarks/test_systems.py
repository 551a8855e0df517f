"""The demonstrations' own bookkeeping: margins seed by seed, the exit code, and the figures that the README shows."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

from adaptome.recipe import shipped_recipes

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks" / "systems"
STORED = sorted((ROOT / "benchmarks" / "results" / "systems").glob("*.json"))


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "_demo", raising=False)
    import _demo

    monkeypatch.setattr(_demo, "RESULTS", tmp_path / "kept")
    return _demo


def demo(harness, values, **changes):
    """A demonstration whose figures are given, seed by seed: its own, the base's, the trivial one's."""

    def measure(seed, folder):
        assert folder.is_dir() and not list(folder.iterdir())
        return dict(zip(("x-demo", "base", "dull"), values[seed], strict=True))

    given = {"ahead": {"base": 0.1, "dull": 0.2}, **changes}
    return harness.Demo("x-demo", "score", "base", "dull", measure=measure, **given)


def test_margins_are_meant_seed_by_seed_and_the_exit_code_is_the_verdict(harness, capsys):
    good = [(0.9, 0.7, 0.1), (0.8, 0.6, 0.1), (0.7, 0.6, 0.1)]
    assert harness.carry_out(demo(harness, good), 3, "python x.py") == 0
    assert "x-demo  0.8000 ± 0.1000" in capsys.readouterr().out
    one_seed_is_short = [*good[:2], (0.7, 0.61, 0.1)]
    assert harness.carry_out(demo(harness, one_seed_is_short), 3, "python x.py") == 1
    shown = capsys.readouterr().out
    assert "no   ahead of base by 0.1 in every seed" in shown and "yes  ahead of dull by 0.2" in shown
    also = {"also": lambda seen: {f"{len(seen)} seeds are even": len(seen) % 2 == 0}}
    assert harness.carry_out(demo(harness, good, **also), 3, "python x.py") == 1
    assert "no   3 seeds are even" in capsys.readouterr().out


def test_three_seeds_are_kept_and_one_is_not(harness, capsys):
    values = [(0.9, 0.7, 0.1), (0.8, 0.6, 0.1), (0.7, 0.5, 0.4)]
    harness.carry_out(demo(harness, values), 1, "python x.py")
    assert not harness.RESULTS.exists()
    harness.carry_out(demo(harness, values), 3, "python x.py")
    kept = json.loads((harness.RESULTS / "x-demo.json").read_text())
    assert kept["values"] == [0.9, 0.8, 0.7] and kept["value"] == pytest.approx(0.8)
    assert (kept["base"], kept["trivial"]) == pytest.approx((0.6, 0.2)) and kept["command"] == "python x.py"
    assert kept["rows"]["dull"] == [0.1, 0.1, 0.4] and all(kept["asserted"].values())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_is_kept_is_of_a_shipped_recipe_and_a_script_and_holds(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem in shipped_recipes()
    assert (ROOT / kept["command"].removeprefix("python ").split()[0]).is_file()
    assert len(kept["values"]) >= 3 and kept["value"] == pytest.approx(statistics.fmean(kept["values"]))
    assert kept["value"] > max(kept["base"], kept["trivial"]) and all(kept["asserted"].values())


def test_the_three_first_systems_have_a_script():
    for script in ("gend.py", "cqda.py", "openmed_ner.py"):
        assert "_demo import" in (SCRIPTS / script).read_text(encoding="utf-8")
