"""Classification of images with texts, one of which may be missing: UPMC Food-101, MM-IMDb and tables like them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.core.steer import steer
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.models import load_composite
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, argmax, register_task
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.inference import chunks, evaluating, readable, to_device
from adaptome.tasks.labels import LabelSet, labels_of_train, numbers, targets
from adaptome.tasks.lengths import cut_note, cut_rows
from adaptome.tasks.metrics import classification_metrics, multi_label_metrics
from adaptome.tasks.modality_sets import (
    AVAILABLE,
    SetOptions,
    by_set,
    chosen_sets,
    facts_of,
    filled,
    key,
    mask_of,
    numbered,
)
from adaptome.tasks.modality_task import ModalityTask
from adaptome.tasks.models import load_tokenizer
from adaptome.tasks.pixels import PixelProcessor, load_pixel_processor
from adaptome.tasks.showing import shown

MODEL, BOTH = "image-text-classifier", ["image", "text"]


class MultimodalClassificationOptions(SetOptions):
    modalities: list[str] = Field(default=BOTH, min_length=2, description="always [image, text]")
    image_size: int = Field(default=384, ge=8, description="side in pixels that images are brought to")
    max_length: int = Field(default=40, ge=4, description="tokens kept of a text; ViLT has places for 40")
    multi_label: bool = Field(default=False, description="label is a list of any number of labels")
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability from which a label is predicted (multi_label)"
    )
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the labels and their order; default: from train"
    )

    @model_validator(mode="after")
    def _both(self) -> MultimodalClassificationOptions:
        if self.modalities != BOTH:
            raise ValueError(f"modalities of this task are {BOTH}; data.columns says which columns they are")
        if "text" in self.fill:
            raise ValueError("fill: a missing text is the empty one; only image can be filled")
        return self


class ImageTextProcessor:
    """Images [h, w, 3] -> pixels, and texts -> tokens; one file of each kind in a folder."""

    def __init__(self, tokenizer: Any, pixels: PixelProcessor):
        self.tokenizer, self.pixels = tokenizer, pixels

    def save_pretrained(self, folder: Any) -> None:
        self.tokenizer.save_pretrained(folder)
        self.pixels.save_pretrained(folder)

    def tokens(self, texts: Sequence[str], limit: int) -> dict[str, Tensor]:
        """input_ids and attention_mask [batch, n]; an empty text has one token where the tokenizer adds none."""
        own = self.tokenizer
        read = own(list(texts), truncation=True, max_length=min(limit, own.model_max_length))
        blank = own.eos_token_id if own.eos_token_id is not None else own.pad_token_id
        rows = {
            "input_ids": [ids or [blank] for ids in read["input_ids"]],
            "attention_mask": [mask or [1] for mask in read["attention_mask"]],
        }
        padded = own.pad(rows, return_tensors="pt")
        return {name: padded[name] for name in rows}


@register_task("multimodal-classification")
class MultimodalClassification(ModalityTask):
    """Columns: image (files, relative to the table that names them, or arrays), text, label; None or an empty text where a row lacks it.

    `predict` takes mappings with image (a path, PIL image or array), text, or both; on a command line `image=dish.jpg text="..."`.
    """

    Options = MultimodalClassificationOptions
    options: MultimodalClassificationOptions
    texts: ClassVar[tuple[str, ...]] = ("text",)
    later_options = ("threshold",)
    takes = ENDINGS

    @property
    def primary_metric(self) -> str:
        return "macro_f1" if self.options.multi_label else "accuracy"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> ImageTextProcessor:
        image, text = (part_of(model, name) for name in BOTH)
        image.tokenizer = None
        return ImageTextProcessor(load_tokenizer(text), load_pixel_processor(image))

    def shaped(self, splits: Any) -> Any:
        """Paths of images, relative to the table that names them, as they are from here.

        Raises:
            DataError: a file that is not there.
        """
        return Splits({name: _with_paths(split) for name, split in splits.items()}, splits.notes)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("label")
        found = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = found.names
        data = self.with_sets(splits, processor, self._pairs(found))
        for name, split in splits.items():
            texts, limit = [text for text in split.rows["text"] if text], self.options.max_length
            if texts:
                read = processor.tokenizer(texts, truncation=True, max_length=limit)
                data.notes += cut_note(
                    cut_rows(read, [texts], processor.tokenizer, limit), len(texts), name, limit
                )
        return data

    def _pairs(self, found: LabelSet) -> Any:
        count, many = len(self.labels or ()), self.options.multi_label
        return lambda name, split: Pairs(
            split, targets(split, name, numbers(split, name, "label", found), count, many)
        )

    def collator(self, processor: Any) -> PairCollator:
        return PairCollator(processor, self.options)

    def inputs(self, rows: Any) -> list[Any]:
        own = rows.select_columns(BOTH).with_format("numpy")
        return [{n: v for n in BOTH if (v := cell(row[n])) is not None} for row in own]

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """An `image-text-classifier`."""
        return load_composite(model, MODEL, labels=len(self.labels or ()))

    # -- scores --------------------------------------------------------------------------------------------------------

    def metrics(self, result: Any) -> dict[str, float]:
        logits, (truth, available) = np.asarray(result.predictions), result.label_ids

        def figures(places: np.ndarray) -> dict[str, float]:
            if self.options.multi_label:
                level = np.log(self.options.threshold / (1 - self.options.threshold))
                return multi_label_metrics((logits[places] >= level).astype(int), truth[places].astype(int))
            return classification_metrics(argmax(logits[places]), truth[places])

        return by_set(numbered(torch.as_tensor(available)).numpy(), self.options, figures)

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Label, or labels, and scores of each input, by the modalities that are given.

        Returns a list of {"available" (the set's name), "label", "score", "scores"}, or with multi_label {"available", "labels", "scores"}.

        Raises:
            DataError: an image that cannot be read, or a required modality that is missing.
        """
        own, collate, made = self.options, PairCollator(processor, self.options), list[Any]()
        rows = []
        for number, one in enumerate(inputs, 1):
            members = own.check_given([n for n, v in one.items() if v is not None], f"input {number}")
            rows.append({**one, "present": members, AVAILABLE: members})
        with evaluating(model) as device:
            for part in chunks(rows, batch_size):
                batch = collate(list(part))
                available = batch.pop(AVAILABLE)
                batch["tokens"] = to_device(batch["tokens"], device)
                with steer(**facts_of(available, own.modalities)):
                    logits = model(**to_device(batch, device))["logits"].float().cpu()
                scores = logits.sigmoid() if own.multi_label else logits.softmax(-1)
                level = own.threshold if own.multi_label else None
                made += [
                    {AVAILABLE: key(row[AVAILABLE]), **readable(self.labels or [], each, level)}
                    for row, each in zip(part, scores, strict=True)
                ]
        return made

    def shown(self, one: Any, prediction: Any) -> Shown:
        picture = to_rgb(one["image"]) if one.get("image") is not None else None
        return shown(one.get("text") or "", prediction, picture)


def part_of(model: ModelSpec, name: str) -> Any:
    """Where an encoder comes from, as a model section says it: its own part, that of both, or the folder of a whole model."""
    settings: dict[str, Any] = getattr(model, "settings", {})
    given = settings.get(name) or settings.get("joint")
    if model.name is not None or given is None:
        keys = ("name", "revision", "from_config", "tokenizer")
        return SimpleNamespace(**{one: getattr(model, one) for one in keys})
    part = {"name": given} if isinstance(given, str) else dict(given)
    return SimpleNamespace(tokenizer=model.tokenizer, **{one: part.get(one) for one in ("name", "revision", "from_config")})  # fmt: skip


def cell(value: Any) -> Any:
    """What a cell holds; None for nothing and for an empty text."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.item()
    if value is None or isinstance(value, str):
        return str(value) if value else None
    return value


def _with_paths(split: Split) -> Split:
    if "image" not in split.rows.column_names or split.rows.features["image"].__class__.__name__ != "Value":
        return split
    made: list[str | None] = []
    for row, path in enumerate(split.rows["image"]):
        whole = Path(split.tables[int(split.origin[row][0])].file).parent / path if path else None
        if whole is not None and not whole.is_file():
            raise DataError(f"{split.where(row)}: no file {whole}.")
        made.append(None if whole is None else str(whole))
    return Split(split.rows.remove_columns("image").add_column("image", made), split.tables, split.origin)


class Pairs:
    """A split's rows: image, text and labels."""

    def __init__(self, split: Split, targets: Sequence[Any]):
        self.rows, self.targets = split.rows.select_columns(BOTH).with_format("numpy"), targets

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        row = {name: cell(value) for name, value in self.rows[index].items()}
        return {**row, "labels": self.targets[index]}


class PairCollator:
    """Rows with their sets -> pixels [batch, 3, side, side], what is missing filled; tokens, those of the empty text where it is missing; available
    [batch, 2]; and labels where there are any.
    """

    def __init__(self, processor: Any, options: MultimodalClassificationOptions):
        self.processor, self.options = processor, options

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        own, side = self.options, self.options.image_size
        sets = chosen_sets(rows)
        available = mask_of(sets, own.modalities)
        blank = np.zeros((side, side, 3), np.uint8)
        pictures, texts = [], []
        for row, members in zip(rows, sets, strict=True):
            pictures.append(
                np.asarray(to_rgb(row["image"]).resize((side, side))) if "image" in members else blank
            )
            texts.append(row["text"] if "text" in members else "")
        pixels = filled(self.processor.pixels(pictures), available[:, 0], own.fill.get("image", 0.0))
        batch = {
            "pixels": pixels,
            "tokens": self.processor.tokens(texts, own.max_length),
            AVAILABLE: available,
        }
        if "labels" in rows[0]:
            batch["labels"] = torch.as_tensor(np.array([row["labels"] for row in rows]))
        return batch
