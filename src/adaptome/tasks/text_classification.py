"""Text classification: one text or a pair of them, one label or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError
from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.inference import chunks, evaluating, readable, to_device
from adaptome.tasks.labels import labels_of_train, numbers, targets
from adaptome.tasks.lengths import cut_note, cut_rows
from adaptome.tasks.metrics import classification_metrics, multi_label_metrics
from adaptome.tasks.models import (
    check_vocabulary,
    head_modules,
    load_labelled_config,
    load_pretrained,
    load_tokenizer,
    resolve,
)
from adaptome.tasks.pooling import MeanPooledClassifier, pooled_by_mean, say_pooled_by_mean
from adaptome.tasks.scores import Scores, softmax_scores


class TextClassificationOptions(TaskOptions):
    max_length: int = Field(
        default=256, ge=4, description="tokens kept of a text (never more than the tokenizer says)"
    )
    pooling: Literal["auto", "cls", "mean"] = Field(
        default="auto",
        description="cls: the model's own head; mean: over all tokens; auto: mean where the encoder was trained so",
    )
    multi_label: bool = Field(default=False, description="label is a list of any number of labels")
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability from which a label is predicted (multi_label)"
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="before the head; default: the model's own"
    )
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the labels and their order; default: from train"
    )


@register_task("text-classification")
class TextClassification(Task):
    """Columns: text, label, and text_pair where two texts are compared."""

    Options = TextClassificationOptions
    options: TextClassificationOptions
    later_options = ("threshold",)

    @property
    def primary_metric(self) -> str:
        return "micro_f1" if self.options.multi_label else "accuracy"

    def load_processor(self, model: ModelSpec) -> Any:
        return load_tokenizer(model)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        from transformers import DataCollatorWithPadding

        splits.require("text", "label")
        pair = ["text_pair"] if any("text_pair" in s.rows.column_names for s in splits.values()) else []
        splits.require(*pair)
        labels = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = labels.names
        made, notes = {}, []
        for name, split in splits.items():
            wanted = targets(
                split,
                name,
                numbers(split, name, "label", labels),
                len(self.labels or ()),
                self.options.multi_label,
            )
            made[name], cut = self._dataset(split, pair, wanted, processor)
            notes += cut_note(cut, len(split), name, self._length(processor))
        return Prepared(
            made, DataCollatorWithPadding(processor), self.labels, length_column="length", notes=notes
        )

    def _dataset(self, split: Split, pair: list[str], targets: list[Any], processor: Any) -> tuple[Any, int]:
        """The tokenised rows, and how many of them were cut."""
        import datasets

        texts = [_texts(split, column) for column in ("text", *pair)]
        read = processor(*texts, truncation=True, max_length=self._length(processor))
        encoded = dict(read)
        encoded["labels"] = targets
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return datasets.Dataset.from_dict(encoded), cut_rows(read, texts, processor, self._length(processor))

    def _length(self, processor: Any) -> int:
        return min(self.options.max_length, processor.model_max_length)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A MeanPooledClassifier or transformers' own sequence classifier, as `pooling` says."""
        from transformers import AutoModel, AutoModelForSequenceClassification

        kind = "multi_label" if self.options.multi_label else "single_label"
        config = load_labelled_config(model, self.labels, problem_type=f"{kind}_classification")
        if processor is not None and config.pad_token_id is None:
            config.pad_token_id = processor.pad_token_id
        built: nn.Module
        if self._mean(model):
            encoder, self.new_modules = load_pretrained(AutoModel, model, config)
            if isinstance(getattr(encoder, "pooler", None), nn.Module):
                encoder.pooler = None  # type: ignore[assignment]  # not in the path, so no gradient would reach it
            self.new_modules = ["classifier"]
            built = MeanPooledClassifier(
                encoder, config.num_labels, self._dropout(config), self.options.multi_label
            )
        else:
            if self.options.dropout is not None:
                config.classifier_dropout = self.options.dropout
            built, self.new_modules = load_pretrained(AutoModelForSequenceClassification, model, config)
            built.accepts_loss_kwargs = False  # type: ignore[assignment]  # its loss is a mean over the batch
        check_vocabulary(built, processor)
        return built

    def _mean(self, model: ModelSpec) -> bool:
        if self.options.pooling != "auto":
            return self.options.pooling == "mean"
        return model.from_config is None and pooled_by_mean(resolve(model.name or "minilm"))

    def _dropout(self, config: Any) -> float:
        if self.options.dropout is not None:
            return self.options.dropout
        return float(getattr(config, "hidden_dropout_prob", 0.1))

    def head_patterns(self, model: nn.Module) -> list[str]:
        if isinstance(model, MeanPooledClassifier):
            return ["classifier"]
        return _with_heads(model, self.new_modules)

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        super().save_base(model, processor, folder)
        if isinstance(model, MeanPooledClassifier):
            say_pooled_by_mean(folder)

    def metrics(self, result: Any) -> dict[str, float]:
        logits, truth = result.predictions, np.asarray(result.label_ids)
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        if self.options.multi_label:
            return multi_label_metrics(_sigmoid(logits) >= self.options.threshold, truth.astype(bool))
        return classification_metrics(argmax(logits), truth)

    def scores(self, result: Any) -> Scores | None:
        return None if self.options.multi_label else softmax_scores(result.predictions, result.label_ids)

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Label and scores of each text, or of each (text, text) pair.

        Returns a list of {"label", "score", "scores"}; with `multi_label`, "labels" instead of "label" and "score".
        """
        made: list[Any] = []
        with evaluating(model) as device:
            for part in chunks(inputs, batch_size):
                texts = list(zip(*part, strict=True)) if part and not isinstance(part[0], str) else [part]
                batch = processor(
                    *[list(t) for t in texts],
                    truncation=True,
                    max_length=self._length(processor),
                    padding=True,
                    return_tensors="pt",
                )
                logits = model(**to_device(batch, device)).logits.float()
                scores = logits.sigmoid() if self.options.multi_label else logits.softmax(-1)
                made += [self._readable(row) for row in scores.cpu()]
        return made

    def _readable(self, scores: torch.Tensor) -> dict[str, Any]:
        return readable(
            self.labels or [], scores, self.options.threshold if self.options.multi_label else None
        )


def _texts(split: Split, column: str) -> list[str]:
    values = list(split.rows[column])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"{split.where(row)}: {column!r} is {value!r} ({type(value).__name__}); expected text."
            )
    return values


def _with_heads(model: nn.Module, new: Sequence[str]) -> list[str]:
    """Head modules, and new ones inside the base (a pooler the checkpoint did not have)."""
    heads = head_modules(model)
    return [*heads, *(name for name in new if name.split(".")[0] not in heads)]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
