"""The recipes of CL²GEC: the adapter's size at the model's full size, and both in a few steps."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import adaptome as ad
from adaptome.data.makers import make
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import run, run_continual

QWEN = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064,
}  # fmt: skip
LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
SMALL = {
    "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 3872,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes", "targets", "count"),
    [
        ("qwen2", QWEN, ["q", "v"], 2_523_136),
        ("qwen2", QWEN, "all-linear", 20_185_088),
        ("llama", LLAMA, ["q", "v"], 3_407_872),
        ("llama", LLAMA, "all-linear", 20_971_520),
    ],
)
def test_lora_has_the_papers_count_at_full_size(kind, sizes, targets, count):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    section = load_recipe("cl2gec-qwen").methods[0]
    assert ad.attach(model, section.name, **{**section.settings, "targets": targets}).trainable == count


@pytest.mark.slow
def test_the_papers_recipe_in_a_few_steps_on_files_of_the_cards_layout(tmp_path):
    for split, table in make("made:corrections", 0).items():
        rows = [
            dict(zip(table.columns, values, strict=True))
            for values in zip(*table.columns.values(), strict=True)
        ]
        rows = [row for name in ("法学", "农学") for row in [r for r in rows if r["category"] == name][:6]]
        lines = (json.dumps({"id": str(i), **row}, ensure_ascii=False) for i, row in enumerate(rows))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    few = [
        f"model={json.dumps({'from_config': SMALL, 'tokenizer': 'characters'})}",
        "task.template=plain", "task.max_new_tokens=4", f"data={{train: '{tmp_path}/train.jsonl', test: '{tmp_path}/test.jsonl'}}",
        "continual.strategy.samples=2", "continual.stream.order=similar", "training.bf16=false", "training.max_steps=2",
        "training.batch_size=2", "training.device=cpu", f"output={tmp_path}/run",
    ]  # fmt: skip
    result = run_continual(load_recipe("cl2gec-qwen", few), callbacks=[])
    assert set(result.continual["tasks"]) == {"法学", "农学"} and result.continual["metric"] == "f0.5"
    matrix = result.continual["matrices"]["domain"]
    assert matrix[0][1] is None and all(0 <= value <= 1 for value in matrix[1])


def test_the_demonstration_in_a_few_steps(tmp_path):
    few = [f"stages.{n}.training.max_steps=2" for n in range(2)]
    few += [
        "stages.0.data.limit=32",
        "stages.1.data={name: 'made:corrections', limit: 60}",
        "task.max_new_tokens=2",
    ]
    (_, base), (_, stream) = stages_of(load_recipe("cl2gec-demo", [*few, f"output={tmp_path}"]))
    run(base, callbacks=[])
    result = run_continual(stream, callbacks=[])
    assert result.continual["tasks"] == ["法学", "经济学", "历史学", "农学", "艺术学"]
    assert len(result.continual["matrices"]["domain"]) == 5 and "domain_bwt" in result.metrics
