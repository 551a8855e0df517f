"""The recipes for language modelling: two steps each on a small model, with data of the same columns."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
import torch

import adaptome as ad
from adaptome.core import packed
from adaptome.data.makers import stdlib_texts
from adaptome.data.stdlib_docstrings import DocstringTask, Example
from adaptome.recipe import load_recipe
from adaptome.training import load_run, run, run_stages
from tests.tasks.conftest import byte_tokenizer_folder  # noqa: F401  (a fixture)

FOLDER = Path(ad.__file__).parent / "recipes" / "causal-lm"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.endswith("-demo"))
#: what a recipe's base is where it is a folder that `adaptome quantize` makes, and what one layer has shards for
FOLDERS = {"mos-alpaca": ["methods.0.layer_rank=2"], "qwha-alpaca": ["model.quantization={scheme: uniform, bits: 2, group: 32}", "methods.0.repair.full=null", "methods.0.repair.examples=4", "methods.0.r=4"]}  # fmt: skip
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
        changes = [*SMALL, *FOLDERS.get(path.stem, []), f"model.tokenizer={byte_tokenizer_folder}"]
        recipe = load_recipe(path.stem, changes)
        result = run(recipe)
    assert result.steps == 2 and result.trainable_parameters > 0
    quantised = recipe.model.quantization is not None
    assert ("taking adamw_torch" in caplog.text) is ("adamw_8bit" in path.read_text())
    model = load_run(result.folder).model
    assert packed.is_packed(model.model.layers[0].mlp.up_proj) is quantised
    if "l4q" in path.stem:
        tokens = torch.randint(258, (2, 9))
        logits = model(tokens).logits
        ad.pack(model)
        assert torch.equal(model(tokens).logits, logits)


def test_repairing_needs_what_was_lost_and_a_method_that_begins_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    changes = [*SMALL, "model.tokenizer=bytes", *FOLDERS["qwha-alpaca"]]
    for change, words in (
        ("model.quantization=null", "before they were quantised"),
        ("methods.0={name: dora, repair: {examples: 0}}", "dora has no start"),
        ("methods.0.layers=0", "not with layers"),
    ):
        with pytest.raises(ad.errors.RecipeError, match=words):
            run(load_recipe("qwha-alpaca", [*changes, change]))
    result = run(
        load_recipe("qwha-alpaca", [*changes, "methods.0={name: lora, r: 4, repair: {examples: 0}}"])
    )  # LoftQ
    assert any("quantising lost" in note for note in result.notes)


EXAMPLES = tuple(Example(f"Return the [MASK] of number {i}.", i % 2, f"m:{i}") for i in range(24))
FEW = DocstringTask(("ast", "csv"), EXAMPLES, EXAMPLES[:6], EXAMPLES[6:12])


@pytest.mark.parametrize("system", ["qwha", "l4q", "sketchtune", "paca"])
def test_a_demonstration_takes_a_few_steps(system, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stdlib_texts, "docstring_task", lambda: FEW)  # reading the whole library takes long
    few = [
        "data.limit=24",
        "stages.1.data.limit=24",
        "training.device=cpu",
        "task.max_length=48",
        "training.batch_size=4",
    ]
    steps = [f"stages.{i}.training.{key}=2" for i in (0, 1) for key in ("max_steps", "eval_steps")]
    result = run_stages(
        load_recipe(f"{system}-demo", [*few, *steps, f"output={tmp_path / 'r'}"]), callbacks=[]
    ).last
    assert result.steps == 2 and 0 < result.metrics["loss"] < 7 and 0 < result.metrics["loss_before"] < 7
    if system == "qwha":
        assert any("of the error that quantising made" in note for note in result.notes)
    model = load_run(result.folder).model
    assert packed.is_packed(model.model.layers[0].mlp.up_proj) is (system != "l4q")
    if system == "l4q":
        ad.pack(model)
        assert ad.save_gptq(model, tmp_path / "gptq", tolerance=0.05).errors
