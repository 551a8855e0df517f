"""The benchmarks that make the evidence: what each counts, the command that runs all, and the page of whatever is there."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest

import adaptome as ad

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "docs"))

    def one(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return one


def test_exponents_are_those_of_powers(load):
    scaling = load("scaling")
    assert scaling.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert scaling.exponent([1, 2], [1.0, -1.0]) is None


def test_growth_is_of_the_size_that_is_varied(load, monkeypatch):
    scaling = load("scaling")
    monkeypatch.setattr(scaling, "SIZES", {"hidden": 16, "depth": 1, "length": 8, "rank": 2, "adapters": 1})
    monkeypatch.setattr(scaling, "AXES", {"length": (8, 16), "adapters": (1, 3)})
    told = scaling.row("lora", "length", 1)
    assert told["sizes"] == [8, 16] and min(told["ms"]) > 0 and 0.9 < told["kept_exponent"] < 1.5
    several = scaling.model_of({**scaling.SIZES, "adapters": 3}, "lora")
    one = scaling.model_of(scaling.SIZES, "lora")
    assert ad.trainable(several).count == 3 * ad.trainable(one).count
    more = scaling.row("lora", "adapters", 1)
    assert more["kept"][1] > more["kept"][0] > more["kept_floor"][0]
    assert "adapters" in scaling.text(more)


def test_adapters_are_handled_by_both_libraries(load, monkeypatch, tmp_path):
    adapters = load("adapters")
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}  # fmt: skip
    monkeypatch.setattr(adapters, "SHAPE", tiny)
    found = {name: getattr(adapters, name)(2, tmp_path / name) for name in ("ours", "theirs")}
    for rows in found.values():
        assert set(rows) == {"attach", "save", "switch", "step", "merge", "load", "detach"}
        assert all(row["median"] > 0 for row in rows.values())
    saved = ad.load(adapters.base(), tmp_path / "ours" / "a1", "a1")
    assert saved


def test_quality_takes_what_goes_with_the_model_and_says_why_not(load, tmp_path):
    quality = load("quality")
    for split in ("train", "validation", "test"):
        lines = [{"text": f"{('good', 'bad')[i % 2]} {split} {i}", "label": i % 2} for i in range(8)]
        (tmp_path / "sst2").mkdir(exist_ok=True)
        (tmp_path / "sst2" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    args = argparse.Namespace(data=tmp_path, length=16, rows=None, epochs=1, rate=1e-3, device="cpu", out=tmp_path / "out")  # fmt: skip
    base = quality.content("sst2", args)
    found, refused = quality.admitted(base, ["lora", "bitfit", "petalface", "pyra"], "lora:r=2")
    assert [section["name"] for section in found] == ["lora", "bitfit"]
    assert found[0]["budget"] == "lora:r=2" and found[1]["label"] == "bitfit (own size)"
    assert set(refused) == {"petalface", "pyra"} and all(refused.values())


@pytest.mark.slow
def test_quality_lays_peft_and_full_fine_tuning_beside_and_repeats_nothing(load, tmp_path, monkeypatch, capsys):  # fmt: skip
    quality = load("quality")
    for split in ("train", "validation", "test"):
        lines = [{"text": f"{('good', 'bad')[i % 2]} {split} {i}", "label": i % 2} for i in range(16)]
        (tmp_path / "sst2").mkdir(exist_ok=True)
        (tmp_path / "sst2" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["quality.py", "--data", str(tmp_path), "--sets", "sst2", "--methods", "lora", "--seeds", "2", "--epochs", "1", "--length", "8", "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    quality.main()
    told = json.loads((tmp_path / "out" / "sst2" / "comparison.json").read_text())
    of = {row["label"]: row for row in told["rows"]}
    assert set(of) == {"lora", "PEFT lora", "full fine-tuning"}
    assert of["PEFT lora"]["parameters"] == of["lora"]["parameters"] < of["full fine-tuning"]["parameters"]
    assert all(len(row["values"]) == 2 for row in of.values()) and len(told["pairs"]) == 3
    monkeypatch.setattr(quality.transformers, "Trainer", None)  # nothing is trained again
    quality.main()
    assert json.loads((tmp_path / "out" / "sst2" / "comparison.json").read_text()) == told


@pytest.fixture
def everything(load):
    return load("all")


def test_one_command_runs_all_and_keeps_the_rows(everything, tmp_path, monkeypatch, capsys):
    ran = []

    class Done:
        returncode, stdout = 0, 'a word\n{"method": "lora", "axis": "rank"}\n'

    def run(words, **given):
        ran.append(words[1])
        return Done()

    monkeypatch.setattr(everything.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["all.py", "--small", "--only", "step", "scaling", "quality", "--out", str(tmp_path)])  # fmt: skip
    assert everything.main() == 0
    assert ran == ["benchmarks/step.py", "benchmarks/scaling.py"]
    [folder] = tmp_path.iterdir()
    assert (folder / "scaling.jsonl").read_text() == '{"method": "lora", "axis": "rank"}\n'
    told = json.loads((folder / "conditions.json").read_text())
    assert set(told["parts"]) == {"step", "scaling"} and "torch" in told["versions"]
    assert "--data" in capsys.readouterr().err
    Done.returncode = 1
    monkeypatch.setattr(sys, "argv", ["all.py", "--only", "adapters", "--out", str(tmp_path)])
    assert everything.main() == 1 and not (folder / "adapters.jsonl").exists()


def test_every_part_is_a_benchmark_and_a_section(everything, load):
    evidence = load("evidence")
    assert set(everything.PARTS) == set(evidence.SECTIONS)
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(everything.PARTS) - there <= {"end_to_end"}


STEP = {"method": "lora", "trainable": 1000, "ours_time": 1.2, "ours_products": 1.1, "ours_bytes": 1.3, "floor_ms": 5.0, "floor_mb": 1.0}  # fmt: skip


def test_the_page_shows_what_there_is_and_names_what_is_not(load, tmp_path):
    evidence = load("evidence")
    assert evidence.evidence_page(tmp_path).count("Not measured yet") == len(evidence.SECTIONS)
    old, new = tmp_path / "2026-01-01", tmp_path / "2026-02-01"
    old.mkdir()
    new.mkdir()
    rows = [
        {**STEP, "peft_time": 2.0, "peft_bytes": 1.5},
        {**STEP, "method": "paca"},
        {"method": "vpt", "refused": "no"},
    ]
    (new / "step.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = evidence.evidence_page(tmp_path)
    assert "| `lora` | 1,000 | 1.20 | 1.10 | 1.30 | 2.00 | 1.50 |" in shown and "| `paca` | 1,000 | 1.20 | 1.10 | 1.30 | - | - |" in shown  # fmt: skip
    assert shown.count("<svg") == 1 and "vpt" not in shown
    for name in set(evidence.SECTIONS) - {"step"}:
        assert f"`python benchmarks/all.py --only {name}`" in shown
    axis = {"method": "lora", "axis": "rank", "sizes": [4, 8], "ms": [1.0, 2.0], "kept": [1, 2], "ms_exponent": 1.0, "ms_over": None, "kept_exponent": 1.0, "kept_over": 0.5}  # fmt: skip
    (new / "scaling.jsonl").write_text(json.dumps(axis))
    one = {"set": "trec", "method": "lora", "trained": 10, "metric": "accuracy", "values": [0.5, 0.6], "mean": 0.55, "low": 0.5, "ms": 1.0, "mib": 5.0}  # fmt: skip
    (new / "quality.jsonl").write_text(json.dumps(one))
    (new / "end_to_end.jsonl").write_text(json.dumps({"tokens_per_second": 1234.5, "who": "ours"}))
    (old / "step.jsonl").write_text(json.dumps({**STEP, "method": "older"}))
    (old / "adapters.jsonl").write_text(
        json.dumps({"what": "load", "adapters": 10, "ours": {"median": 1.0, "last": 2.0}, "peft": None})
    )
    shown = evidence.evidence_page(tmp_path)
    assert "older" not in shown and "| load | 10 | 1.00 | 2.00 | - | - |" in shown
    assert "0.5500 ± 0.0500" in shown and "| `lora` | rank | 4, 8 | 1.00 | - | 1.00 | 0.50 |" in shown and "| 1,234 | ours |" in shown  # fmt: skip


def test_the_committed_results_make_a_page(load):
    shown = load("evidence").evidence_page()
    assert "## A training step" in shown and "<svg" in shown
