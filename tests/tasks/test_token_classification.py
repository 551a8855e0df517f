"""Token classification: alignment, windows, entities."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.tasks import get_task
from adaptome.tasks.token_classification import IGNORED
from tests.tasks.tiny import fit, small, spec, splits_of

ROWS = [
    {"tokens": [name, verb, "in", "the", place], "tags": ["B-PER", "O", "O", "O", "B-LOC"]}
    for name in ("anna", "bob") for verb in ("lives", "plays", "sleeps") for place in ("paris", "london")
]  # fmt: skip


@pytest.fixture
def model(tokenizer_folder):
    return spec(from_config=small("bert", vocab_size=40), tokenizer=tokenizer_folder)


def prepared(tmp_path, model, rows=ROWS, validation=ROWS[:2], **options):
    task = get_task("token-classification", **options)
    processor = task.load_processor(model)
    return task, processor, task.prepare(splits_of(tmp_path / "data", rows, validation), processor)


def test_only_first_pieces_are_tagged(tmp_path, model):
    row = {"tokens": ["anna", "playing", "."], "tags": ["B-PER", "B-ACT", "O"]}
    task, processor, data = prepared(tmp_path, model, [row], [row])
    assert task.labels == ["O", "B-ACT", "I-ACT", "B-PER", "I-PER"]
    assert processor.convert_ids_to_tokens(data["train"][0]["input_ids"]) == [
        "[CLS]",
        "anna",
        "play",
        "##ing",
        ".",
        "[SEP]",
    ]
    assert data["train"][0]["labels"] == [IGNORED, 3, 1, IGNORED, 0, IGNORED]
    _, _, data = prepared(tmp_path, model, [row], [row], first_subtoken_only=False)
    assert data["train"][0]["labels"] == [IGNORED, 3, 1, 2, 0, IGNORED]


def test_long_sentences_become_windows_and_lose_no_word(tmp_path, model):
    words = (["anna", "playing", "cat"] * 9)[:25]
    row = {"tokens": words, "tags": ["B-PER" if w == "anna" else "O" for w in words]}
    task, processor, data = prepared(tmp_path, model, [row], [row], max_length=10)
    kept = [label for window in data["train"]["labels"] for label in window if label != IGNORED]
    assert [task.labels[i] for i in kept] == row["tags"]
    assert max(data["train"]["length"]) <= 10
    assert data.notes[0] == (
        "1 sentences of train exceed 8 tokens and were cut into windows (task.max_length)."
    )
    built = task.load_model(model, processor)
    found = task.predict(built, processor, [words, ["cat"]])
    assert [len(f["tags"]) for f in found] == [25, 1]


def test_words_that_the_tokenizer_drops_keep_their_tag(tmp_path, model):
    row = {"tokens": ["anna", "\u200b", "paris"], "tags": ["B-PER", "O", "B-LOC"]}
    _, processor, data = prepared(tmp_path, model, [row], [row])
    assert data["train"][0]["input_ids"].count(processor.unk_token_id) == 1
    assert [label for label in data["train"][0]["labels"] if label != IGNORED] == [3, 0, 1]


def test_it_learns_and_finds_entities(tmp_path, model):
    torch.manual_seed(0)
    task, processor, data = prepared(tmp_path, model)
    built = task.load_model(model, processor)
    assert task.head_patterns(built) == ["classifier"]
    assert fit(built, data["train"], data.collator, steps=80) < 0.1
    found = task.predict(
        built, processor, ["bob plays in the london", ["anna", "sleeps", "in", "the", "paris"]], batch_size=1
    )
    assert found[0]["entities"] == [
        {"text": "bob", "type": "PER", "start": 0, "end": 1, "start_char": 0, "end_char": 3},
        {"text": "london", "type": "LOC", "start": 4, "end": 5, "start_char": 17, "end_char": 23},
    ]
    assert found[1]["tags"] == ["B-PER", "O", "O", "O", "B-LOC"]


def test_metrics_count_entities_as_conlleval(tmp_path, model):
    task, *_ = prepared(tmp_path, model)
    names = task.labels
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "O", "O"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "O", "O", "B-PER"]]
    pad = lambda rows: np.array([[*(names.index(t) for t in row), IGNORED] for row in rows])  # noqa: E731
    result = SimpleNamespace(predictions=np.where(pad(found) == IGNORED, 0, pad(found)), label_ids=pad(truth))
    assert task.metrics(result) == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 6 / 8}
    )
    assert task.primary_metric == "f1"


def test_logits_are_reduced_before_they_pile_up(tmp_path, model):
    task, *_ = prepared(tmp_path, model)
    logits = torch.tensor([[[1.0, 5.0], [3.0, 2.0]]])
    assert task.reduce((logits, None), torch.zeros(1, 2)).tolist() == [[1, 0]]


def test_tags_that_are_not_spans_are_measured_by_token(tmp_path, model):
    rows = [{"tokens": ["anna", "runs"], "tags": ["NOUN", "VERB"]}] * 2
    task, processor, _ = prepared(tmp_path, model, rows, rows)
    assert (task.labels, task.primary_metric) == (["NOUN", "VERB"], "accuracy")
    result = SimpleNamespace(predictions=np.array([[0, 0]]), label_ids=np.array([[0, 1]]))
    assert task.metrics(result)["accuracy"] == 0.5
    assert task.predict(task.load_model(model, processor), processor, ["anna"])[0]["entities"] == []


def test_a_type_that_goes_on_elsewhere_is_no_unknown_tag(tmp_path, model):
    row = {"tokens": ["anna", "bob"], "tags": ["B-PER", "I-PER"]}
    assert prepared(tmp_path, model, validation=[row])[0].labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_unknown_tags_name_the_tokens_line(tmp_path, model):
    (tmp_path / "train.conll").write_text("anna B-PER\nruns O\n")
    (tmp_path / "validation.conll").write_text("the O\n\nin O\nparis B-PLACE\n")
    splits = load_splits(str(tmp_path))
    task = get_task("token-classification")
    with pytest.raises(
        DataError, match=r"validation\.conll, line 4: label 'B-PLACE' of the validation split"
    ):
        task.prepare(splits, task.load_processor(model))


def test_unknown_tags_in_other_files_name_the_item(tmp_path, model):
    with pytest.raises(
        DataError, match=r"validation\.jsonl, line 1, item 2: label 'B-X' of the validation split"
    ):
        prepared(tmp_path, model, validation=[{"tokens": ["a", "b"], "tags": ["O", "B-X"]}])


def test_rows_out_of_step_are_named(tmp_path, model):
    with pytest.raises(DataError, match=r"validation\.jsonl, line 1: 2 tokens but 1 tags"):
        prepared(tmp_path, model, validation=[{"tokens": ["a", "b"], "tags": ["O"]}])
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: tokens and tags are lists"):
        prepared(tmp_path, model, rows=[{"tokens": "a b", "tags": "O O"}])
    with pytest.raises(DataError, match=r"has no column 'tags'\. Did you mean 'tag'\?"):
        prepared(tmp_path, model, rows=[{"tokens": ["a"], "tag": ["O"]}])
