"""The demonstration of PYRA in a few steps, and the paper's schedule of merges at the model's full size."""

from __future__ import annotations

import json

import pytest
import torch

import adaptome as ad
from adaptome.data.makers.grounds import COUNTS
from adaptome.recipe import load_recipe
from adaptome.training import load_run, run_stages


@pytest.mark.slow
def test_the_demonstration_merges_down_to_five_tokens(tmp_path, monkeypatch):
    for kinds in COUNTS.values():
        for split in kinds:
            monkeypatch.setitem(kinds, split, 32)
    few = [
        f"stages.1.training={json.dumps({'max_steps': 2, 'batch_size': 8, 'keep_best': False})}",
        "stages.1.data.limit=32",
    ]
    few += ["training.max_steps=2", "data.limit=32", "training.device=cpu", f"output={tmp_path}/demo"]
    found = run_stages(load_recipe("pyra-demo", few), callbacks=[])
    assert "accuracy" in found.last.metrics
    model = load_run(tmp_path / "demo").model
    seen = []
    model.vit.layernorm.register_forward_hook(lambda module, args, made: seen.append(made.shape))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 5, 48)]
    assert set(ad.adapters(model)) == {"default", "merging"}
