"""The sweep over transformers' architectures: a small choice always, every class in `make test-all`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STORED = json.loads((BENCHMARKS / "results" / "architectures.json").read_text(encoding="utf-8"))["classes"]
#: faults that are on the page: those of today, and no others
KNOWN = {
    (name, method)
    for name, row in STORED.items()
    for method, text in row["methods"].items()
    if text.startswith("fault")
}
CHOICE = ["WavLMForCTC", "Mamba2ForCausalLM", "CLIPForImageClassification", "LayoutLMForMaskedLM"]
PARTS = 64


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "architectures", raising=False)
    import architectures

    return architectures


@pytest.mark.parametrize("name", CHOICE)
def test_a_choice(sweep, name):
    found = sweep.examine(name, ["lora", "norm-tuning", "houlsby"])
    assert found["lora"].startswith("works") and not any(
        text.startswith("fault") for text in found.values()
    ), found


@pytest.mark.parametrize(
    ("name", "method", "verdict"),
    [
        ("DeepseekV4ForCausalLM", "dora", "works"),  # a linear layer in blocks
        ("DeepseekV4ForCausalLM", "prompt-tuning", "refused: .* chooses experts by the tokens themselves"),
        ("AfmoeForCausalLM", "prefix-tuning", "works"),  # gives its mask by name
        ("MoshiForCausalLM", "prefix-tuning", "works"),  # wraps its maps
        ("ProphetNetForCausalLM", "prompt-tuning", "works"),  # several streams, one after another
    ],
)
def test_layers_and_calls_of_their_own(sweep, name, method, verdict):
    assert re.match(verdict, sweep.examine(name, [method])[method])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_class(sweep, part):
    known = sweep.classes()
    first = sweep.first_of_type(known)
    faults = {}
    for name in (n for n in sorted(known)[part::PARTS] if n in STORED):
        for method, text in sweep.examine(name, list(sweep.METHODS) if name in first else ["lora"]).items():
            if text.startswith("fault") and (name, method) not in KNOWN:
                faults[name, method] = text
    assert not faults


def test_what_works_is_told_apart_from_what_does_not(sweep, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "architectures.json")
    monkeypatch.setattr(
        sweep, "classes", lambda: {"LayoutLMForMaskedLM": ("layoutlm", ["AutoModelForMaskedLM"])}
    )
    monkeypatch.setattr(sweep, "examine", lambda name, methods: {"lora": "works", "ia3": "fault: something"})
    assert sweep.main([]) == 1 and "1 classes, 1 run, 1 faults" in capsys.readouterr().out
    stored = json.loads(sweep.RESULTS.read_text())
    assert stored["classes"]["LayoutLMForMaskedLM"]["methods"] == {"lora": "works", "ia3": "fault: something"}
