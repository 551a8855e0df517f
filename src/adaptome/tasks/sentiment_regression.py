"""Sentiment of what people say, by features of their words, voices and faces over time, some of which may be missing (CMU-MOSI, CMU-MOSEI)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import DataError
from adaptome.core.steer import steer
from adaptome.data.rasters import read_array
from adaptome.data.readers.arrays import ARCHIVES, read_arrays
from adaptome.data.splits import Split, Splits
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, register_task
from adaptome.tasks.inference import chunks, evaluating, to_device
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
from adaptome.tasks.modality_task import ModalityTask, require_columns
from adaptome.tasks.sentiment_scores import sentiment_figures
from adaptome.tasks.showing import Given

MODEL = "multimodal-transformer"


class SentimentRegressionOptions(SetOptions):
    modalities: list[str] = Field(
        default=["text", "audio", "vision"],
        min_length=2,
        description="columns of sequences, in the order of the model's features",
    )


class NoProcessor:
    """Features are ready as they are."""

    def save_pretrained(self, folder: Any) -> None:
        """Nothing is kept."""


@register_task("sentiment-regression")
class SentimentRegression(ModalityTask):
    """Columns: label, a number, and for each modality a sequence [steps, features].

    `predict` takes mappings modality -> array [steps, features] or .npy file, of all modalities or some; on a command line `text=words.npy`, or
    archives (.npz, .safetensors) of arrays [steps, features], or [clips, steps, features], under the modalities' names.
    """

    Options = SentimentRegressionOptions
    options: SentimentRegressionOptions
    greater_is_better = False
    takes: ClassVar[frozenset[str]] = frozenset({*ARCHIVES, ".npy"})

    @property
    def primary_metric(self) -> str:
        return "mae"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> NoProcessor:
        return NoProcessor()

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("label")
        for name, split in splits.items():
            require_columns(split, name, self.options.modalities)
        clips = {name: Clips(split, self.options) for name, split in splits.items()}
        data = self.with_sets(splits, processor, lambda name, split: clips[name])
        data.notes += [
            f"{one.odd} numbers of {name} were no finite ones and are 0."
            for name, one in clips.items()
            if one.odd
        ]
        return data

    def collator(self, processor: Any) -> ClipCollator:
        return ClipCollator(self.options)

    def inputs(self, rows: Any) -> list[Any]:
        own = rows.select_columns(self.options.modalities).with_format("numpy")
        return [{n: v for n, v in row.items() if v is not None} for row in own]

    def truths(self, rows: Any) -> list[Any] | None:
        if "label" not in rows.column_names:
            return None
        return [round(float(np.asarray(v).reshape(-1)[0]), 4) for v in rows["label"]]

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `multimodal-transformer` for one number."""
        return self.matching(model, MODEL, "features", 1)

    # -- scores --------------------------------------------------------------------------------------------------------

    def metrics(self, result: Any) -> dict[str, float]:
        found, (truth, available) = np.asarray(result.predictions)[:, 0], result.label_ids
        sets = numbered(torch.as_tensor(available)).numpy()
        return by_set(sets, self.options, lambda places: sentiment_figures(found[places], truth[places]))

    # -- use -----------------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        found: list[Given] = []
        named = []
        for word in words:
            if "=" not in word and Path(word).suffix.lower() in ARCHIVES:
                found += clips_of(Path(word), self.options)
            else:
                named.append(word)
        return [*found, *(super().given(named) if named else [])]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """The sentiment of each input, by the modalities that are given.

        Returns a list of {"available" (the set's name), "value"}.

        Raises:
            DataError: a file that cannot be read, or a required modality that is missing.
        """
        own, collate, rows, made = self.options, ClipCollator(self.options), list[Any](), list[Any]()
        for number, one in enumerate(inputs, 1):
            members = own.check_given(one, f"input {number}")
            read = {name: sequence(one[name], f"{name} of input {number}") for name in members}
            rows.append({**read, "present": members, AVAILABLE: members})
        with evaluating(model) as device:
            for part in chunks(rows, batch_size):
                batch = collate(list(part))
                sequences = to_device(batch["sequences"], device)
                with steer(**facts_of(batch[AVAILABLE], own.modalities)):
                    values = model(sequences=sequences)["logits"][:, 0].float().cpu()
                made += [
                    {AVAILABLE: key(row[AVAILABLE]), "value": round(float(v), 6)}
                    for row, v in zip(part, values, strict=True)
                ]
        return made

    def shown(self, one: Any, prediction: Any) -> Shown:
        return Shown(f"{prediction['value']:+.2f}", f"by {prediction[AVAILABLE]}")


def sequence(one: Any, name: str) -> np.ndarray:
    """Features [steps, features] of float32, what is no finite number as 0.

    Raises:
        DataError: it is no such array.
    """
    if isinstance(one, str | Path):
        name, one = str(one), read_array(Path(one))[..., 0]
    array = np.asarray(one)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number) or not len(array):
        raise DataError(f"{name} has the shape {list(array.shape)}; expected numbers [steps, features].")
    return np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def clips_of(path: Path, own: SentimentRegressionOptions) -> list[Given]:
    """The clips in an archive.

    Raises:
        DataError: it cannot be read, or holds no modality of the run, or of different numbers of clips.
    """
    arrays = {name: array for name, array in read_arrays(path).items() if name in own.modalities}
    own.check_given(arrays, str(path))
    if all(array.ndim == 2 for array in arrays.values()):
        return [Given(str(path), arrays)]
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or any(array.ndim != 3 for array in arrays.values()):
        told = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise DataError(f"{path}: expected arrays [steps, features], or [clips, steps, features] of as many clips; found {told}.")  # fmt: skip
    count = next(iter(counts.values()))
    return [Given(f"{path} {i}", {n: array[i] for n, array in arrays.items()}) for i in range(count)]


class Clips:
    """A split's rows as sequences and a label.

    odd: how many numbers of the split are not finite.
    """

    def __init__(self, split: Split, options: SentimentRegressionOptions):
        self.split, self.names = split, options.modalities
        self.rows = split.rows.select_columns(["label", *self.names]).with_format("numpy")
        self.odd = 0
        for start in range(0, len(self.rows), 512):
            part = self.rows[start : start + 512]
            self.odd += sum(
                int((~np.isfinite(v)).sum()) for n in self.names for v in part[n] if v is not None
            )

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        row, where = self.rows[index], self.split.where(index)
        label = np.asarray(row["label"], dtype=np.float64).reshape(-1)
        if label.size != 1 or not np.isfinite(label[0]):
            raise DataError(f"{where}: the label is {label.tolist()}; expected one number.")
        own = {n: sequence(row[n], f"{where}: {n}") for n in self.names if row[n] is not None}
        return {**own, "label": float(label[0])}


class ClipCollator:
    """Rows of `Clips` with their sets -> sequences: modality -> [batch, steps, features], zeros behind the shorter and for what is missing; available
    [batch, modalities]; and labels [batch] where there are any.
    """

    def __init__(self, options: SentimentRegressionOptions):
        self.options = options

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        own = self.options
        available = mask_of(chosen_sets(rows), own.modalities)
        sequences: dict[str, Tensor] = {}
        for place, name in enumerate(own.modalities):
            given = [row[name] for row in rows if name in row]
            if not given:
                continue
            steps, width = max(map(len, given)), given[0].shape[1]
            made = torch.zeros(len(rows), steps, width)
            for number, row in enumerate(rows):
                if name in row:
                    own_steps = torch.from_numpy(row[name])
                    made[number] = F.pad(
                        own_steps, (0, 0, steps - len(own_steps), 0)
                    )  # the last step is read
            sequences[name] = filled(made, available[:, place], own.fill.get(name, 0.0))
        batch: dict[str, Any] = {"sequences": sequences, AVAILABLE: available}
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=torch.float32)
        return batch
