"""The sentence classifier ignores padding, its batches lose nothing, and its scores are scikit-learn's."""

import random
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn

from adaptome.data.stdlib_docstrings import Example
from adaptome.quickstart.model import Batches, confusion, logits_of, scores
from adaptome.tasks.pooling import MeanPooledClassifier


class Encoder(nn.Module):
    """Token ids to states; the id is in the first component."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids, attention_mask):
        states = torch.stack([input_ids, input_ids * 0 + 1, attention_mask], -1) * self.scale
        return SimpleNamespace(last_hidden_state=states)


class Tokenizer:
    """A token per letter, padded with 99."""

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[ord(c) - ord("a") for c in text][:max_length] for text in texts]}

    def pad(self, rows, return_tensors):
        width = max(map(len, rows["input_ids"]))
        ids = torch.tensor([row + [99] * (width - len(row)) for row in rows["input_ids"]])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows["input_ids"]])
        return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def examples():
    rng = random.Random(0)
    return [
        Example("".join(rng.choices("abcdefg", k=rng.randint(1, 12))), i % 5, f"m:{i}") for i in range(203)
    ]


def test_padding_does_not_change_the_features():
    model = MeanPooledClassifier(Encoder(), 2)
    alone = model.features(torch.tensor([[2, 4]]), torch.tensor([[1, 1]]))
    ids, mask = torch.tensor([[2, 4, 99], [1, 2, 6]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.equal(model.features(ids, mask)[:1], alone)
    assert alone.tolist() == [[3, 1, 1]]


def test_an_epoch_takes_every_example_once_with_its_label(examples):
    batches = Batches(examples, Tokenizer(), 8, 10)
    seen = []
    for batch, labels in batches.shuffled(random.Random(1)):
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], labels, strict=True):
            seen.append((tuple(ids[mask.bool()].tolist()), label.item()))
    expected = [(tuple(batches.tokens[i]), example.label) for i, example in enumerate(examples)]
    assert sorted(seen) == sorted(expected) and seen != expected
    assert len(batches) == 26 == sum(1 for _ in batches.shuffled(random.Random(1)))


def test_batches_of_like_length_compute_little_on_padding(examples):
    batches = Batches(examples, Tokenizer(), 8, 10)
    kept = sum(map(len, batches.tokens))
    computed = sum(batch["input_ids"].numel() for batch, _ in batches.shuffled(random.Random(1)))
    assert kept <= computed < 1.2 * kept


def test_logits_come_in_the_order_of_the_examples(examples):
    model = MeanPooledClassifier(Encoder(), 2)
    nn.init.normal_(model.classifier.weight)
    batches = Batches(examples, Tokenizer(), 8, 10)
    logits = logits_of(model, batches)
    for i in (0, 7, 202):
        ids = torch.tensor([batches.tokens[i]])
        assert torch.allclose(logits[i], model(ids).logits[0])


def test_scores_equal_scikit_learns():
    true, predicted = torch.randint(0, 5, (2, 300), generator=torch.Generator().manual_seed(0))
    matrix = confusion(predicted, true, 5)
    assert matrix.tolist() == confusion_matrix(true, predicted).tolist()
    found = scores(matrix)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
