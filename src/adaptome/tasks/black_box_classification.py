"""Text classification with a model that gives no gradients: it is asked once for every text, and a small network learns from what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from adaptome.blackbox import BLACK_BOXES, Asked, get_black_box
from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data.splits import Splits
from adaptome.models import load_composite
from adaptome.models.cross_tune import CrossTune, padded
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.inference import chunks, evaluating, readable, to_device
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.metrics import classification_metrics
from adaptome.tasks.models import resolve
from adaptome.tasks.scores import Scores, softmax_scores

MODEL = "cross-tune"
Texts = str | list[str]


class BlackBoxOptions(TaskOptions):
    black_box: dict[str, Any] = Field(
        default_factory=lambda: {"name": "local"},
        description="what is asked: {name: local, model: ...}, {name: endpoint, model: ...}, or a package's own; further keys are its settings",
    )
    descriptions: dict[str, Texts] | Path = Field(
        default_factory=dict,
        description="label -> what it means, in one text or several; or a JSON file of that. Default: the label's name",
    )
    more: dict[str, Texts] = Field(
        default_factory=dict,
        description="further classes by their descriptions, which a finished run with direction: label tells apart without training",
    )
    cache: Path = Field(default=Path("runs/black-box"), description="folder of what was asked before")
    budget: int | None = Field(
        default=None, ge=1, description="calls that may ever be made through this cache; a text is a call"
    )
    keep: Literal["float16", "float32"] = Field(default="float16", description="numbers in the cache")
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the labels and their order; default: from train"
    )

    @model_validator(mode="after")
    def _named(self) -> BlackBoxOptions:
        if not isinstance(self.black_box.get("name"), str):
            raise ValueError(f"black_box needs its name; there are {', '.join(BLACK_BOXES.all())}")
        return self


@register_task("black-box-classification")
class BlackBoxClassification(Task):
    """Columns: text and label. The model is a `cross-tune`; its classes are the labels' descriptions.

    Training costs a call for each text of train and validation and for each description, a test a call for each text; none is
    made twice, for what was said is kept in `cache`.
    """

    Options = BlackBoxOptions
    options: BlackBoxOptions
    later_options = ("more", "cache", "budget")

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self._asked: Asked | None = None

    @property
    def primary_metric(self) -> str:
        return "accuracy"

    # -- data ------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Any:
        """The black box behind its cache."""
        if self._asked is None:
            settings = dict(self.options.black_box)
            name = settings.pop("name")
            if name == "local":
                settings["model"] = resolve(settings.get("model", "minilm"))
            box = get_black_box(name, **settings)
            self._asked = Asked(
                box, self.options.cache, self.options.budget, getattr(torch, self.options.keep)
            )
        return self._asked

    def ask_by(self, asked: Asked) -> None:
        """Take another black box than the recipe names: a `Calling`, say."""
        self._asked = asked

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        import datasets

        splits.require("text", "label")
        labels = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = labels.names
        known = labels_of_train(splits, "label", self.names)
        made = {}
        for name, split in splits.items():
            texts = list(split.rows["text"])
            for row, text in enumerate(texts):
                if not isinstance(text, str) or not text.strip():
                    raise DataError(
                        f"{split.where(row)}: 'text' is {text!r}; expected a text that is not empty."
                    )
            made[name] = datasets.Dataset.from_dict(
                {"text": texts, "labels": numbers(split, name, "label", known)}
            )
        described = [text for some in self.descriptions_of(self.names).values() for text in some]
        processor.ask([*described, *(text for rows in made.values() for text in rows["text"])])
        note = f"{processor.calls} calls were made to the black box, {processor.spent} with those of earlier runs."
        return Prepared(
            made,
            Collator(processor),
            self.labels,
            remove_unused_columns=False,
            notes=[*splits.notes, note, *self._stray()],
        )

    @property
    def names(self) -> list[str]:
        """The labels, and the further classes behind them."""
        return [*(self.labels or []), *self.options.more]

    def descriptions_of(self, labels: Sequence[str]) -> dict[str, list[str]]:
        """The descriptions of each label; its name where none is given.

        Raises:
            RecipeError: the file of descriptions cannot be read, or an empty description.
        """
        told = {**self._told(), **self.options.more}
        made = {}
        for label in labels:
            found = told.get(label, label)
            made[label] = [found] if isinstance(found, str) else list(found)
            if not made[label] or not all(isinstance(text, str) and text.strip() for text in made[label]):
                raise RecipeError(
                    f"task.descriptions: that of {label!r} is {found!r}; write what the label means."
                )
        return made

    def _told(self) -> dict[str, Texts]:
        told = self.options.descriptions
        if not isinstance(told, Path):
            return told
        try:
            held = json.loads(told.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"task.descriptions={str(told)!r} cannot be read as JSON: {error}.") from error
        if not isinstance(held, dict):
            raise RecipeError(
                f"task.descriptions={str(told)!r}: expected an object of label and description."
            )
        return held

    def _stray(self) -> list[str]:
        told, names = self._told(), self.labels or []
        without = [name for name in names if name not in told]
        stray = [name for name in told if name not in names]
        notes = []
        if without:
            notes.append(
                f"{len(without)} labels have no description and stand for themselves: {', '.join(without[:5])}."
            )
        if stray:
            notes.append(
                f"{len(stray)} descriptions are of no label of train: {', '.join(stray[:5])}.{did_you_mean(stray[0], names)}"
            )
        return notes

    # -- model -----------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `cross-tune` of the black box's width that knows the labels' descriptions, and those of `more`."""
        if processor is None:
            processor = self.load_processor(model)
        described = self.descriptions_of(self.names)
        processor.ask([text for some in described.values() for text in some])
        classes = [[processor.states(text) for text in described[name]] for name in self.names]
        made = load_composite(model, MODEL, width=int(classes[0][0].shape[1]), labels=len(self.labels or ()))
        assert isinstance(made, CrossTune)
        made.describe(classes)
        return made

    def head_patterns(self, model: nn.Module) -> list[str]:
        return ["network.scorer"]

    # -- scores ----------------------------------------------------------------------------------------------------

    def metrics(self, result: Any) -> dict[str, float]:
        return classification_metrics(argmax(result.predictions), np.asarray(result.label_ids))

    def scores(self, result: Any) -> Scores | None:
        return softmax_scores(result.predictions, result.label_ids)

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Label and scores of each text, as {"label", "score", "scores"}; a text costs a call, unless it was asked before.

        Raises:
            BlackBoxError: the black box does not answer, or its budget is spent.
        """
        processor.ask([text for text in inputs])
        collate, made = Collator(processor), list[Any]()
        with evaluating(model) as device:
            for part in chunks(inputs, batch_size):
                batch = to_device(collate([{"text": text} for text in part]), device)
                logits = model(**batch)["logits"].float()
                made += [readable(self.names, row) for row in logits.softmax(-1).cpu()]
        return made


class Collator:
    """Rows of text and perhaps labels -> states [batch, L, d] and mask [batch, L] of what the black box said, and labels [batch]."""

    def __init__(self, asked: Asked):
        self.asked = asked

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        states, mask = padded([self.asked.states(row["text"]) for row in rows])
        batch: dict[str, Any] = {"states": states, "mask": mask}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch
