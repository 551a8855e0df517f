"""The pretrained sentence encoder with a classifier on it, its batches, and how it is scored."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptome.data.stdlib_docstrings import Example
from adaptome.quickstart.settings import PROBE, WARM_UP, WEIGHT_DECAY, Settings
from adaptome.recipe import Recipe, load_recipe
from adaptome.tasks import Task, get_task
from adaptome.tasks.pooling import MeanPooledClassifier

Batch = dict[str, Tensor]
SPLITS = ("train", "validation", "test")


def recipe_of(method: str, settings: Settings, output: Path) -> Recipe:
    """What is trained, as a recipe: it is stored with the adapter, for `adaptome predict`, `eval` and `train`.

    A recipe has one learning rate; the quickstart's own loop gives the head a higher one.
    """
    options = settings.options.get(method, {})
    return load_recipe(
        {
            "title": f"Which module does a docstring come from? MiniLM with {method}, as in `adaptome quickstart`",
            "model": {"name": "minilm"},
            "task": {"name": "text-classification", "max_length": settings.max_tokens},
            "data": {split: str(output / "data" / f"{split}.jsonl") for split in SPLITS},
            "methods": [] if method == PROBE else [{"name": method, **options}],
            "training": {
                "epochs": settings.epochs,
                "batch_size": settings.batch_size,
                "learning_rate": settings.learning_rate,
                "warmup": WARM_UP,
                "weight_decay": WEIGHT_DECAY,
                "seed": settings.seed,
            },
            "output": {"folder": str(output / f"{method}-again")},
        }
    )


def load_base(recipe: Recipe, labels: Sequence[str]) -> tuple[Task, Any, MeanPooledClassifier]:
    """The task, the tokenizer, and the packaged encoder with a new head on the mean of its token states.

    Raises:
        MissingExtraError: the encoder's package is not installed.
    """
    from transformers import set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the file's pooler, told as unexpected, is left out on purpose
    task = get_task(recipe.task.name, labels, **recipe.task.settings)
    spec: Any = recipe.model
    tokenizer = task.load_processor(spec)
    set_seed(recipe.training.seed)  # the head's start
    model = task.load_model(spec, tokenizer)
    assert isinstance(model, MeanPooledClassifier)
    return task, tokenizer, model


class Batches:
    """Examples as token batches. Texts of like length share a batch, so that little is computed on padding."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any, size: int, max_tokens: int) -> None:
        texts = [example.text for example in examples]
        self.tokens: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
        self.labels = torch.tensor([example.label for example in examples])
        self.tokenizer, self.size = tokenizer, size

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / self.size)

    def shuffled(self, order: random.Random) -> Iterator[tuple[Batch, Tensor]]:
        """One epoch: shuffle, sort every 16 batches' worth by length, cut into batches, shuffle those."""
        places, bucket = list(range(len(self.tokens))), 16 * self.size
        order.shuffle(places)
        for start in range(0, len(places), bucket):
            places[start : start + bucket] = sorted(places[start : start + bucket], key=self._length)
        cut = [places[start : start + self.size] for start in range(0, len(places), self.size)]
        order.shuffle(cut)
        for chosen in cut:
            yield self._batch(chosen), self.labels[chosen]

    def in_order(self) -> Iterator[tuple[Batch, list[int]]]:
        """Every example once, the short ones first, with its place among the examples: for evaluation."""
        places = sorted(range(len(self.tokens)), key=self._length)
        for start in range(0, len(places), 2 * self.size):
            chosen = places[start : start + 2 * self.size]
            yield self._batch(chosen), chosen

    def _length(self, place: int) -> int:
        return len(self.tokens[place])

    def _batch(self, places: list[int]) -> Batch:
        padded = self.tokenizer.pad({"input_ids": [self.tokens[p] for p in places]}, return_tensors="pt")
        return dict(padded)


@torch.inference_mode()
def logits_of(model: MeanPooledClassifier, batches: Batches) -> Tensor:
    """Logits [examples, labels] in the examples' order."""
    model.eval()
    logits = torch.empty(len(batches.tokens), model.classifier.out_features)
    for batch, places in batches.in_order():
        logits[places] = model(**batch).logits
    return logits


def confusion(predicted: Tensor, true: Tensor, labels: int) -> Tensor:
    """Counts [labels, labels]: row the true label, column the predicted one."""
    return torch.bincount(true * labels + predicted, minlength=labels * labels).reshape(labels, labels)


def scores(matrix: Tensor) -> dict[str, float]:
    """Accuracy, and the mean over the labels of F1 (2 hits / (times true + times predicted), 0 if never either)."""
    hits = matrix.diagonal()
    f1 = 2 * hits / (matrix.sum(0) + matrix.sum(1)).clamp_min(1)
    return {"accuracy": (hits.sum() / matrix.sum()).item(), "macro_f1": f1.mean().item()}
