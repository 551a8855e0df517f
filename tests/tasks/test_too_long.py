"""Data whose every row is longer than `task.max_length`: cut and counted, or refused by the setting's name, in each task that has it."""

from __future__ import annotations

import json

import pytest

from adaptome.core.errors import DataError
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task, tasks
from adaptome.training import run
from tests.tasks.tiny import small, spec, splits_of

TRACE = "<think>\nI add one and one.\n</think>\n\n\\boxed{2}"
LONG = "the cat runs and the dog sleeps in paris and anna lives in london "
LLAMA = {"from_config": small("llama", num_key_value_heads=2, vocab_size=258)}
BERT = {"from_config": small("bert", vocab_size=40)}
#: task -> model, rows, settings, and what is told: an error, or a note on every row of the training split
CASES = {
    "text-classification": (BERT, {"text": LONG}, {"max_length": 12}, "6 of 6 examples of train exceed 12 tokens and were cut"),
    "masked-lm": (BERT, {"text": LONG}, {"max_length": 12}, "6 texts of train exceed 12 tokens and became several windows"),
    "token-classification": (BERT, {"tokens": LONG.split(), "tags": ["O", "B-PER"] * (len(LONG.split()) // 2)}, {"max_length": 12}, "6 sentences of train exceed"),
    "grammar-correction": (LLAMA, {"source": LONG, "references": [LONG]}, {"max_length": 40, "template": "plain", "instruction": ""}, DataError),
    "dialogue": (LLAMA, {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "two"}]}, {"max_length": 40, "chat_template": "human-assistant"}, DataError),
    "reasoning": (LLAMA, {"instruction": LONG, "answer": "2", "output": "It is 2."}, {"max_length": 40, "train_on_inputs": False}, DataError),
    "long-reasoning": (LLAMA, {"instruction": LONG, "answer": "2", "output": TRACE}, {"max_length": 40, "markers": "think", "template": "plain"}, DataError),
}  # fmt: skip


def test_these_are_the_tasks_with_a_limit_on_tokens():
    limited = {name for name in tasks() if "max_length" in tasks()[name].Options.model_fields}
    elsewhere = {
        "audio-classification",
        "knowledge-extraction",
        "multimodal-classification",
        "protein-generation",
        "video-qa",
    }  # frames; marks that small tokenizers lack; pictures beside the texts; left out, not cut; a model of parts: in their own tests
    assert limited - elsewhere == {*CASES, "causal-lm"}


@pytest.mark.parametrize("name", CASES)
def test_every_row_too_long(name, tmp_path, byte_tokenizer_folder, tokenizer_folder):
    model, row, settings, told = CASES[name]
    task = get_task(name, **settings)
    folder = tokenizer_folder if model is BERT else byte_tokenizer_folder
    processor = task.load_processor(spec(**model, tokenizer=folder))
    labels = [{"label": label} if name == "text-classification" else {} for label in "ab"] * 3
    splits = splits_of(tmp_path / "data", [row | label for label in labels], [row | labels[0]])
    if told is DataError:
        with pytest.raises(DataError, match=r"task\.max_length=40"):
            task.prepare(splits, processor)
        return
    data = task.prepare(splits, processor)
    assert len(data["train"]) >= 6
    assert any(note.startswith(told) and "(task.max_length)" in note for note in data.notes)


@pytest.mark.parametrize("packing", [False, True])
def test_completions_that_begin_behind_the_limit(packing, tmp_path, byte_tokenizer_folder):
    rows = [{"prompt": LONG, "completion": " two"}] * 6
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe({
        "model": {**LLAMA, "tokenizer": byte_tokenizer_folder}, "data": {"train": str(file), "validation_fraction": 0},
        "task": {"name": "causal-lm", "max_length": 16, "packing": packing}, "methods": [{"name": "lora", "r": 2}],
        "training": {"max_steps": 1, "batch_size": 2, "device": "cpu"}, "output": str(tmp_path / "out"),
    })  # fmt: skip
    with pytest.raises(DataError, match=r"longer than 16 tokens .*\n.*task\.max_length"):
        run(recipe)
