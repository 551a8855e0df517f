"""Classify pictures by texts: each class is a prompt, and a picture is of the class whose text is nearest. Few labelled pictures adapt it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.data.augment import AugmentedPictures, cropped
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.models.prompted_classifier import Classes
from adaptome.report.shown import Ranked, Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.class_groups import ONE, Group, Places, Rows, classes_of, halves, rows_of, scored
from adaptome.tasks.class_prompts import (
    DEFAULT,
    ContextOptions,
    checked_template,
    pictures_and_texts,
    prompts_of,
    read_names,
    template_of,
)
from adaptome.tasks.composites import load_around
from adaptome.tasks.dual_processor import load_dual_processor
from adaptome.tasks.image_classification import to_rgb, with_labels
from adaptome.tasks.inference import chunks, evaluating, readable
from adaptome.tasks.scores import Scores, softmax_scores
from adaptome.tasks.showing import Given

MODEL = "prompted-classifier"
#: classes up to which whole logits are kept of an evaluation, for its curves; of more, what was guessed
FEW = 200


class ImageTextClassificationOptions(TaskOptions):
    template: str | None = Field(
        default=None, description="a prompt with {} for the class's name, or a data set's name; default: by the data's folder"
    )  # fmt: skip
    templates: dict[str, str] = Field(
        default_factory=dict,
        description="of further data sets that are evaluated on, by their folders' names",
    )
    classes: list[str] | Literal["data"] | None = Field(
        default=None, description="the classes and their order; data: those of the data at hand, in evaluating a run on another set"
    )  # fmt: skip
    names: str | None = Field(
        default=None, description="a file of what labels are called: JSON {label: name}, or lines of both"
    )
    protocol: Literal["few-shot", "base-to-new"] = Field(
        default="few-shot",
        description="base-to-new: train on the first half of the classes, score both halves",
    )
    classifier: Literal["texts", "head"] = Field(
        default="texts",
        description="texts: encoded at every step; head: once, as a frozen layer (tip-adapter)",
    )
    context: ContextOptions | None = Field(
        default=None, description="places for trained vectors in the prompts, e.g. {words: 16} (coop)"
    )
    image_size: int | None = Field(default=None, ge=1, description="side in pixels; default: the image processor's own")  # fmt: skip
    augment: bool = Field(default=False, description="cut a random part of every training picture and mirror half of them")  # fmt: skip
    least: float = Field(default=0.08, gt=0, le=1, description="the least share of a picture that is cut so")
    augment_seed: int = Field(default=0, ge=0, description="of what is drawn for that")
    noted: str | None = Field(default=None, description="a run notes here the template it was trained with")


@register_task("image-text-classification")
class ImageTextClassification(Task):
    """Columns: image and label; and where there are such dataset and number (see `data.readers.coop`).

    `predict` takes paths, PIL images and arrays; or {"image", "classes"}, to tell the picture among other classes.
    """

    Options = ImageTextClassificationOptions
    options: ImageTextClassificationOptions
    prefer: ClassVar[Mapping[str, str]] = {"json": "coop", "text": "coop"}
    takes = ENDINGS
    measures_before = True
    groups: tuple[Group, ...] = ()

    @property
    def primary_metric(self) -> str:
        return "accuracy"

    @property
    def headline(self) -> str:
        return "harmonic_mean" if self.options.protocol == "base-to-new" else "accuracy"

    def load_processor(self, model: ModelSpec) -> Any:
        return load_dual_processor(model, self.options.image_size)

    # -- data ----------------------------------------------------------------------------------------------------------

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("image", "label")
        rows = {name: self._rows(split) for name, split in splits.items()}
        self.groups = tuple(self._groups(rows))
        places = Places(self.groups)
        texts = replace(self._texts(processor), groups=torch.tensor(places.column_groups()))
        made: dict[str, Any] = {}
        notes = [f"prompts: {self._template(g.dataset).replace('{}', g.classes[0])!r} and so on, {len(g.classes)} classes of {g.name}." for g in self.groups]  # fmt: skip
        for name, split in splits.items():
            columns, groups = places.of(split, rows[name])
            if self.options.protocol == "base-to-new" and name != "test":
                kept = [i for i, group in enumerate(groups) if group == 0]
                split, columns, groups = split.select(kept), [columns[i] for i in kept], [0] * len(kept)
            made[name] = with_labels(split, columns).add_column("groups", groups)
        if self.options.augment and "train" in made:
            change = cropped(self.options.least)
            made["train"] = AugmentedPictures(made["train"], "image", to_rgb, self.options.augment_seed, change)  # fmt: skip
        return Prepared(
            made, PromptedCollator(processor, texts), self.labels, remove_unused_columns=False, notes=notes,
            label_names=("labels", "groups"),
        )  # fmt: skip

    def _rows(self, split: Split) -> Rows:
        found = rows_of(split)
        if self.options.names is None:
            return found
        called = read_names(self.options.names)
        order = {label: number for number, label in enumerate(called)}
        numbers = (
            [order[label] for label in found.labels] if set(found.labels) <= set(order) else found.numbers
        )
        return Rows(found.datasets, [called.get(label, label) for label in found.labels], numbers)

    def _groups(self, rows: Mapping[str, Rows]) -> list[Group]:
        """The trained set's first."""
        found = classes_of(list(rows.values()))
        own = next(iter(found))
        given = self.options.classes
        if given == "data":
            self.labels = None
        known = list(given) if isinstance(given, list) else self.labels
        if known is None or ("train" in rows and own != ONE and not set(known) & set(found[own])):
            known = found[own]
        if given != "data":
            found[own] = known
        if len(known) < 2:
            raise DataError(f"only one class, {known[0]!r}: two or more are needed. Give them: task.classes.")
        self.labels, self._trained = list(known), own
        if self.options.classifier == "head" and len(found) > 1:
            raise DataError(
                f"task.classifier=head: its rows are the classes of {own}, and there are {', '.join(found)}. Take task.classifier=texts."
            )
        if self.options.protocol == "few-shot":
            return [Group(dataset, dataset, tuple(classes)) for dataset, classes in found.items()]
        if len(found) > 1:
            raise DataError(f"task.protocol=base-to-new is of one data set; there are {', '.join(found)}.")
        return halves(own, known)

    def _template(self, dataset: str) -> str:
        """A data set's own, the one that is given or noted, the one that is known of it, or the default."""
        options = self.options
        if dataset in options.templates:
            return checked_template(options.templates[dataset])
        if options.template is not None and dataset == self._trained:
            return checked_template(options.template)
        return template_of(dataset) or options.noted or DEFAULT

    def _texts(self, processor: Any) -> Classes:
        pairs = [(self._template(group.dataset), label) for group in self.groups for label in group.classes]
        return prompts_of(processor, pairs, self.options.context)

    _trained: str = ONE

    def to_dict(self) -> dict[str, Any]:
        told = super().to_dict()
        if self.groups:
            told["options"]["noted"] = self._template(self._trained)
        return told

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `prompted-classifier`: as the recipe names it, or around the encoder that it names."""
        made: Any = load_around(model, MODEL)
        if self.options.classifier == "head":
            made.fix(prompts_of(processor, [(self._own_template(), label) for label in self._known()]))
        return made

    def _own_template(self) -> str:
        if self.groups:
            return self._template(self._trained)
        return checked_template(self.options.template) if self.options.template else self.options.noted or DEFAULT  # fmt: skip

    def _known(self) -> list[str]:
        if not self.labels:
            raise DataError("task.classifier=head: the classes are not known yet; prepare the data first, or give task.classes.")  # fmt: skip
        return self.labels

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        own: Any = model
        own.head = None  # made anew of the classes
        super().save_base(model, processor, folder)

    # -- scores --------------------------------------------------------------------------------------------------------

    def reduce(self, logits: Any, labels: Any) -> Tensor:
        found: Tensor = logits[0] if isinstance(logits, tuple) else logits
        return found if found.shape[-1] <= FEW else found.argmax(-1)

    def metrics(self, result: Any) -> dict[str, float]:
        guesses = np.asarray(result.predictions[0] if isinstance(result.predictions, tuple) else result.predictions)  # fmt: skip
        guesses = guesses.argmax(-1) if guesses.ndim == 2 else guesses
        labels, groups = (np.asarray(column) for column in result.label_ids[:2])
        return scored(guesses, labels, groups, self.groups)

    def scores(self, result: Any) -> Scores | None:
        predictions = result.predictions[0] if isinstance(result.predictions, tuple) else result.predictions
        return softmax_scores(predictions, result.label_ids[0]) if np.ndim(predictions) == 2 else None

    # -- predictions ---------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        """Pictures, and what else is a word the name of a class: the pictures are then told among these.

        Raises:
            DataError: there is no picture, or one class alone.
        """
        pictures, names = pictures_and_texts(words, self.takes)
        if len(names) == 1:
            raise DataError(
                f"{names[0]!r} is no picture here, and as a class's name it needs another beside it."
            )
        if not names:
            return pictures
        return [Given(one.name, {"image": one.value, "classes": names}) for one in pictures]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """The likeliest class of each picture: {"label", "score", "scores"}.

        Raises:
            DataError: a picture that cannot be read; other classes for a classifier that is a layer.
        """
        asked = [one if isinstance(one, Mapping) else {"image": one} for one in inputs]
        names = [tuple(one.get("classes") or self.labels or ()) for one in asked]
        made: list[Any] = [None] * len(asked)
        with evaluating(model) as device:
            for classes in dict.fromkeys(names):
                rows = [i for i, own in enumerate(names) if own == classes]
                texts = self._asked(list(classes), processor)
                for part in chunks(rows, batch_size):
                    pixels = processor.images([to_rgb(asked[i]["image"]) for i in part]).to(device)
                    logits = model(pixel_values=pixels, classes=texts)["logits"].float().softmax(-1).cpu()
                    for i, scores in zip(part, logits, strict=True):
                        made[i] = readable(classes, scores)
        return made

    def _asked(self, names: list[str], processor: Any) -> Classes | None:
        """The texts of these classes; None where they are the model's own."""
        if self.options.classifier == "head":
            if names != self.labels:
                raise DataError(
                    "task.classifier=head: this run's classes are the rows of a layer, and no others can be asked for.\n"
                    "  A run with task.classifier=texts tells any classes."
                )
            return None
        context = self.options.context
        if context is not None and context.own and names != self.labels:
            raise DataError(
                "task.context.own: each class of this run has words of its own, and others have none. Train with own: false."
            )
        return prompts_of(processor, [(self._own_template(), name) for name in names], context)

    def shown(self, one: Any, prediction: Any) -> Shown:
        picture = one["image"] if isinstance(one, Mapping) else one
        best = sorted(prediction["scores"].items(), key=lambda pair: -pair[1])[:5]
        return Shown("", "", picture=to_rgb(picture), ranked=tuple(Ranked(name, p) for name, p in best))


class PromptedCollator:
    """Rows with image and perhaps labels and groups -> pixels, these, and the prompts of all classes."""

    def __init__(self, processor: Any, classes: Classes):
        self.processor, self.classes = processor, classes

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {"pixel_values": self.processor.images([to_rgb(row["image"]) for row in rows])}
        for name in ("labels", "groups"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return {**batch, "classes": self.classes}
