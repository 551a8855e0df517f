"""The recipes of papers that are one method: their settings fit the papers' models, and each takes two steps on small stand-ins."""

from __future__ import annotations

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    RobertaConfig,
)

import adaptome as ad
from adaptome.compare import compare
from adaptome.data.makers import stdlib_texts
from adaptome.data.stdlib_docstrings import DocstringTask, Example
from adaptome.recipe import load_recipe
from adaptome.training import run

SMALL = ["model={from_config: {model_type: bert, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 258}, tokenizer: bytes}",
         "task.max_length=32", "training.max_steps=2", "training.batch_size=4", "training.warmup=0", "training.weight_decay=0", "training.device=cpu"]  # fmt: skip
EXAMPLES = tuple(Example(f"Return the [MASK] of number {i}.", i % 2, f"m:{i}") for i in range(24))
#: what the small model's layers of 32 admit
FITS = {
    "randlora": ["method.r=8"],
    "mos": ["method.layer_rank=2"],
    "loldu": ["method.r=16"],
    "loca": ["method.n=40"],
}
SYSTEMS = ("dylora", "hydra", "diffora", "mos", "randlora", "triadaptlora", "loca", "loldu")


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_demonstration_takes_two_steps(system, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = DocstringTask(("ast", "csv"), EXAMPLES, EXAMPLES[:6], EXAMPLES[6:12])
    monkeypatch.setattr(stdlib_texts, "docstring_task", lambda: task)
    result = run(load_recipe(f"{system}-demo", [*SMALL, *FITS.get(system, ())]))
    assert result.steps == 2 and 0 <= result.metrics["accuracy"] <= 1


@pytest.mark.parametrize(
    "name", ["dylora-mnli", "hydra-sst2", "diffora-rte", "triadaptlora-rte", "loca-cola", "loldu-sst2"]
)
def test_a_papers_recipe_takes_two_steps_on_rows_of_its_columns(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = list(load_recipe(name).data.columns.values())
    rows = [[f"a {'good' if i % 2 else 'bad'} film number {i}"] * len(columns) for i in range(12)]
    for split in ("train", "validation"):
        lines = [
            "\t".join([*columns, "label"]),
            *("\t".join([*row, str(i % 2)]) for i, row in enumerate(rows)),
        ]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
    files = ["data.name=null", "data.config=null", "data.train=train.tsv", "data.validation=validation.tsv"]
    small = {"loldu-sst2": ["method.r=16"], "loca-cola": ["method.n=40"]}.get(name, [])
    result = run(load_recipe(name, [*SMALL, *files, *small]))
    assert result.steps == 2


ROBERTA = RobertaConfig(vocab_size=50265, type_vocab_size=1, max_position_embeddings=514)
LLAMA2 = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
LLAMA3 = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "auto", "config", "count"),
    [
        ("dylora-mnli", AutoModelForSequenceClassification, ROBERTA, 294_912),
        ("loca-cola", AutoModelForSequenceClassification, ROBERTA, 24 * 3_000),
        ("loldu-sst2", AutoModelForSequenceClassification, ROBERTA, 24 * 769),
        ("hydra-sst2", AutoModelForSequenceClassification, ROBERTA, 12 * (4 * (3072 + 768) + 8 * 2 * 768)),
        ("mos-alpaca", AutoModelForCausalLM, LLAMA2, 4_997_120),
        ("randlora-commonsense170k", AutoModelForCausalLM, LLAMA3, 56_626_112),
    ],
)
def test_the_papers_count_is_that_of_its_recipe(name, auto, config, count):
    """Of the adapters, without the head."""
    import torch

    [section] = load_recipe(name).methods
    with torch.device("meta"):
        model = auto.from_config(config)
    how = section.model_dump(exclude_unset=True)
    plan = ad.plan(model, how.pop("name"), targets=how.pop("targets"), **how)
    assert plan.trainable == count


def test_the_survey_has_a_row_of_every_category():
    rows = load_recipe("peft-survey-categories").compare.methods
    assert {row.label for row in rows} - {"frozen"} == {
        ad.list_methods()[row.name].category for row in rows[1:]
    }
    assert [row.label for row in rows[1:]] == [ad.list_methods()[row.name].category for row in rows[1:]]


@pytest.mark.slow
def test_the_survey_compares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = DocstringTask(("ast", "csv"), EXAMPLES, EXAMPLES[:6], EXAMPLES[6:12])
    monkeypatch.setattr(stdlib_texts, "docstring_task", lambda: task)
    found = compare(load_recipe("peft-survey-categories", [*SMALL, "compare.seeds=[0]"]))
    assert [row.label for row in found.rows] and len(found.rows) == 6
