"""`adaptome predict` on text files and folders: entities with their places in characters."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from adaptome.cli._app import build
from adaptome.core.errors import DataError
from adaptome.data.documents import read_documents
from adaptome.recipe import load_recipe
from adaptome.training import run
from tests.tasks.conftest import tokenizer_folder  # noqa: F401
from tests.tasks.tiny import jsonl, small

TEXT = "anna lives in paris.\n\n  bob and the dog sleeps in   london .\n" * 6


@pytest.fixture
def finished(tmp_path, tokenizer_folder):  # noqa: F811
    rows = [{"tokens": ["anna", "in", "paris", "london"], "tags": ["B-PER", "O", "B-LOC", "B-LOC"]}] * 12
    recipe = {
        "model": {"from_config": small("bert", vocab_size=40), "tokenizer": tokenizer_folder},
        "task": {"name": "token-classification", "max_length": 16, "overlap": 4},
        "data": {"train": jsonl(tmp_path / "train.jsonl", rows), "validation_fraction": 0},
        "method": {"name": "lora", "r": 2, "targets": "attention"},
        "training": {"max_steps": 3, "learning_rate": 0.02, "device": "cpu"},
        "output": str(tmp_path / "out"),
    }
    run(load_recipe(recipe), [])
    return tmp_path / "out"


def test_a_folder_of_texts(finished, tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.txt").write_text(TEXT)
    (folder / "a.txt").write_text("paris")
    (folder / "not.csv").write_text("x")
    done = CliRunner().invoke(build(), ["predict", str(finished), str(folder), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["file"] for one in found] == [str(folder / "a.txt"), str(folder / "deep" / "b.txt")]
    spans = found[1]["entities"]
    assert spans and all(TEXT[s["start_char"] : s["end_char"]] == s["text"] for s in spans)
    plain = CliRunner().invoke(build(), ["predict", str(finished), str(folder / "deep" / "b.txt")])
    rows = [line.split("\t") for line in plain.stdout.splitlines()]
    assert [(int(r[1]), int(r[2]), r[3]) for r in rows] == [(s["start_char"], s["end_char"], s["type"]) for s in spans]  # fmt: skip


def test_what_is_no_file_is_a_text(tmp_path):
    (tmp_path / "empty").mkdir()
    assert read_documents(["a sentence", "two\nlines"]) == [(None, "a sentence"), (None, "two\nlines")]
    with pytest.raises(DataError, match="no text file in this folder"):
        read_documents([str(tmp_path / "empty")])
