"""DEFT's recipes: a few steps on small models, the density before and after in the metrics."""

from __future__ import annotations

import pytest

from adaptome.data.makers import stdlib_texts
from adaptome.data.stdlib_docstrings import DocstringTask, Example
from adaptome.recipe import load_recipe
from adaptome.training import run

SMALL = ["model={from_config: {model_type: bert, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 258}, tokenizer: bytes}",
         "task.max_length=32", "training.max_steps=2", "training.batch_size=4", "training.warmup=0", "training.device=cpu"]  # fmt: skip
EXAMPLES = tuple(Example(f"Return the [MASK] of number {i}.", i % 2, f"m:{i}") for i in range(24))


@pytest.mark.parametrize("name", ["deft-demo", "sst2-deft"])
def test_a_recipe_takes_two_steps_and_measures_density(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = DocstringTask(("ast", "csv"), EXAMPLES, EXAMPLES[:6], EXAMPLES[6:12])
    monkeypatch.setattr(stdlib_texts, "docstring_task", lambda: task)
    folder = tmp_path / "data" / "SST-2"
    folder.mkdir(parents=True)
    for split in ("train", "dev"):
        rows = [f"a {'good' if i % 2 else 'bad'} film number {i}\t{i % 2}" for i in range(24)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
    result = run(load_recipe(name, SMALL))
    assert result.steps == 2
    for key in ("density", "density_above"):
        assert 0 < result.metrics[key] <= 1 and 0 < result.metrics[f"{key}_before"] <= 1
