"""The recipes for language modelling: two steps each on a small model, with data of the same columns."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
import torch

import adaptome as ad
from adaptome.core import packed
from adaptome.recipe import load_recipe
from adaptome.training import load_run, run
from tests.tasks.conftest import byte_tokenizer_folder  # noqa: F401  (a fixture)

RECIPES = sorted((Path(ad.__file__).parent / "recipes" / "causal-lm").glob("*.yaml"))
MODEL = "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 258}"
SMALL = ["model.name=null", f"model.from_config={MODEL}", "model.dtype=float32", "task.max_length=64", "training.max_steps=2", "training.batch_size=2",
         "training.gradient_accumulation=1", "training.warmup=0", "training.device=cpu", "training.eval_steps=null", "training.save_steps=null", "training.bf16=false"]  # fmt: skip


def from_the_hub(name, config=None, revision=None):
    """What the hub would give: text, and beside it the parts that Alpaca's text is made of."""
    rows = [{"text": f"### Human: what is {i} + 1? ### Assistant: {i + 1}."} for i in range(60)]
    if name == "tatsu-lab/alpaca":
        rows = [row | {"instruction": "add", "input": "", "output": "1"} for row in rows]
    return datasets.DatasetDict(train=datasets.Dataset.from_list(rows))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_two_steps(path, tmp_path, monkeypatch, byte_tokenizer_folder, caplog):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    with caplog.at_level(logging.WARNING):
        result = run(load_recipe(path.stem, [*SMALL, f"model.tokenizer={byte_tokenizer_folder}"]))
    assert result.steps == 2 and result.trainable_parameters > 0
    quantised = "quantization" in path.read_text()
    assert ("taking adamw_torch" in caplog.text) is quantised
    model = load_run(result.folder).model
    assert packed.is_packed(model.model.layers[0].mlp.up_proj) is quantised
    if "l4q" in path.stem:
        tokens = torch.randint(258, (2, 9))
        logits = model(tokens).logits
        ad.pack(model)
        assert torch.equal(model(tokens).logits, logits)
