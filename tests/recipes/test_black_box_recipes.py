"""The recipes of CrossTune: the demonstration as it ships with few steps, and the paper's with small models on rows in its data's layout."""

from __future__ import annotations

import json

import pytest

from adaptome.recipe import load_recipe
from adaptome.training import run_stages
from tests.tasks.conftest import tokenizer_folder  # noqa: F401


@pytest.mark.slow
def test_the_demonstration_runs_as_it_ships(tmp_path):
    few = ["data.shots=1", "data.limit=30", "training.device=cpu", f"output={tmp_path / 'r'}"]
    few += ["training.max_steps=2"]
    few += [f"task.cache={tmp_path / 'asked'}"]
    result = run_stages(load_recipe("crosstune-demo", few), callbacks=[])
    assert result.chosen in ("2-real", "3-augmented") and 0 < result.last.metrics["accuracy"] < 1


def test_the_papers_recipe_runs_on_small_models(tmp_path, tokenizer_folder):  # noqa: F811
    from transformers import BertConfig, BertModel

    folder = tmp_path / "encoder"
    BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(folder)  # fmt: skip
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    labels = ["World", "Sports", "Business", "Sci/Tech"]
    rows = [{"text": f"the {w} runs in {c}", "label": labels[i % 4]} for i, (w, c) in enumerate([(w, c) for w in ("cat", "dog", "film", "anna") for c in ("paris", "london", "bad")])]  # fmt: skip
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps({**r, "text": f"{r['text']} {split}"}) + "\n" for r in rows)
        )
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"text": f"bob and a {label}", "label": label}) + "\n" for label in labels)
    )
    tiny = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "model_type": "bert",
    }
    changes = [
        f"model={{from_config: {json.dumps(tiny)}, tokenizer: {folder}}}", "methods.0.train=[bert]", "training.device=cpu", f"output={tmp_path / 'r'}",
        f"data={{train: {tmp_path}/train.jsonl, validation: {tmp_path}/validation.jsonl, test: {tmp_path}/test.jsonl, shots: 2}}",
        f"stages.2.augmentation.generator={{name: file, path: {tmp_path}/more.jsonl}}", "stages.2.augmentation.threshold=0",
    ]  # fmt: skip
    for n in (1, 2):
        changes += [
            f"stages.{n}.task.black_box.model={folder}",
            f"stages.{n}.task.cache={tmp_path / 'asked'}",
        ]
    changes += [f"stages.{n}.training={{max_steps: 2, batch_size: 4}}" for n in range(3)]
    result = run_stages(load_recipe("crosstune-agnews", changes), callbacks=[])
    d, f = 16, 2048
    assert result.last.trainable_parameters == 4 * (d * d + d) + 2 * d * f + f + d + 4 * 2 * d + d + 1
    assert any(
        note.startswith("augmentation: of 4 texts by file") for note in result.stages["3-augmented"].notes
    )
