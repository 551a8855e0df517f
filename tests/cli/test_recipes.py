"""`adaptome recipes`, and recipes by name on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptome.cli import main
from adaptome.recipe import load_recipe, shipped_recipes


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code or 0


def test_the_table_has_a_line_for_every_recipe(capsys):
    assert run("recipes") == 0
    firsts = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line and line[0] != " "]
    assert set(shipped_recipes()) <= set(firsts)
    assert run("recipes", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(r["name"] for r in told) == sorted(shipped_recipes())
    systems = [r["system"] for r in told if r["system"]]
    assert systems == sorted(systems) and "llm-adapters" in systems


def test_a_printed_recipe_is_a_copy_to_change(tmp_path, capsys):
    assert run("recipes", "urbansound8k-lora") == 0
    copy = tmp_path / "mine.yaml"
    copy.write_text(capsys.readouterr().out, encoding="utf-8")
    assert copy.read_text("utf-8") == shipped_recipes()["urbansound8k-lora"].text
    assert load_recipe(copy) == load_recipe("urbansound8k-lora")
    assert run("recipes", "urbansound8k-lora", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == copy.read_text("utf-8") and told["methods"] == ["lora"]


@pytest.mark.parametrize("words", [["recipes", "placment"], ["train", "placment"], ["compare", "placment"]])
def test_an_unknown_name_is_told_with_the_nearest(words, capsys):
    assert run(*words) == 1
    assert "Did you mean 'placement'?" in capsys.readouterr().err


def test_a_study_is_compared_and_not_trained(tmp_path, monkeypatch, capsys):
    """`train` on a recipe that only compares says so, by name as by path."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"a {('cat', 'sun')[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(16)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = ["model={from_config: {model_type: bert, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}, tokenizer: minilm}",
             "task=text-classification", "data={train: train.jsonl}"]  # fmt: skip
    assert run("train", "placement", *small) == 1
    assert "are for `adaptome compare`" in capsys.readouterr().err


def test_train_and_compare_take_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"a {('cat', 'sun')[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(16)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = ["model={from_config: {model_type: bert, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}, tokenizer: minilm}",
             "task=text-classification", "data={train: train.jsonl, test_fraction: 0.25}", "training.max_steps=1", "training.warmup=0",
             "training.gradient_accumulation=1"]  # fmt: skip
    assert run("train", "gsm8k-lora", *small, "method.r=2", "method.targets=[q, v]", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert Path("runs/gsm8k-lora/adapter/adaptome.json").is_file()
    assert run("compare", "placement", *small, "--method", "lora", "--seeds", "1", "--json") == 0
    assert [row["label"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["lora"]
