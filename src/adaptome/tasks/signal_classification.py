"""What tasks share that put one label on a signal: a picture, a sound, a video."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax
from adaptome.tasks.inference import chunks, labelled
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.metrics import classification_metrics
from adaptome.tasks.models import head_modules, load_labelled_config, load_pretrained
from adaptome.tasks.scores import Scores, softmax_scores


class SignalOptions(TaskOptions):
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the labels and their order; default: from train"
    )


class SignalClassification(Task):
    """One label for each signal. Columns: the signal's, and label.

    A subclass names the column and transformers' class, and says how a split becomes a data set and rows a batch.
    """

    options: SignalOptions
    #: where the signals are
    column: ClassVar[str]
    #: transformers' class of such classifiers
    classifier: ClassVar[str]

    @property
    def primary_metric(self) -> str:
        return "accuracy"

    @abstractmethod
    def dataset(self, split: Split, labels: list[int], processor: Any) -> Any:
        """The rows of a split as the collator takes them, with their labels; what cannot be read is found here."""

    @abstractmethod
    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Rows with the column and perhaps `labels` -> the model's inputs, and labels [batch]."""

    def told_of(self, made: Mapping[str, Any], processor: Any) -> list[str]:
        """What the user should know of the data sets, all splits at once."""
        return []

    def reader(self, processor: Any) -> Callable[[Any, str], Any]:
        """What makes of a user's input, and a name for it, what the collator takes."""
        return lambda signal, name: signal

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require(self.column, "label")
        labels = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = labels.names
        made = {
            name: self.dataset(split, numbers(split, name, "label", labels), processor)
            for name, split in splits.items()
        }
        notes = self.told_of(made, processor)
        return Prepared(made, self.collator(processor), self.labels, remove_unused_columns=False, notes=notes)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """transformers' own classifier with a head for the labels."""
        return self.pretrained(model, load_labelled_config(model, self.labels))

    def pretrained(self, model: ModelSpec, config: Any) -> nn.Module:
        """transformers' own classifier."""
        import transformers

        built, self.new_modules = load_pretrained(getattr(transformers, self.classifier), model, config)
        built.accepts_loss_kwargs = False  # type: ignore[assignment]  # its loss is a mean over the batch
        return built

    def head_patterns(self, model: nn.Module) -> list[str]:
        return head_modules(model)

    def metrics(self, result: Any) -> dict[str, float]:
        return classification_metrics(argmax(result.predictions), np.asarray(result.label_ids))

    def scores(self, result: Any) -> Scores | None:
        return softmax_scores(result.predictions, result.label_ids)

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Label and scores of each signal.

        Returns a list of {"label", "score", "scores"}.
        """
        read, collate = self.reader(processor), self.collator(processor)
        names = [one if isinstance(one, str) else f"input {number}" for number, one in enumerate(inputs, 1)]
        batches = (
            collate([{self.column: read(one, name)} for one, name in part])
            for part in chunks(list(zip(inputs, names, strict=True)), batch_size)
        )
        return labelled(model, batches, self.labels or [])
