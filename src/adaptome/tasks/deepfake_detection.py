"""Deepfake detection: whether a face in a picture or video is real, learned from frames and scored by videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError
from adaptome.data.augment import AugmentedPictures
from adaptome.data.faces.crops import SCALE
from adaptome.data.faces.finding import FaceFinder
from adaptome.data.splits import Split, Splits
from adaptome.data.video import frames
from adaptome.tasks.base import ModelSpec, Prepared, register_task
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.detection_scores import Pooling, table
from adaptome.tasks.image_classification import ImageCollator, to_rgb, with_labels
from adaptome.tasks.inference import evaluating, to_device
from adaptome.tasks.models import load_image_processor
from adaptome.tasks.pairing import Pairing, chosen, paired_share, videos_of
from adaptome.tasks.scores import Scores, softmax_scores
from adaptome.tasks.showing import Given
from adaptome.tasks.signal_classification import SignalClassification, SignalOptions

MODEL = "feature-classifier"


class DeepfakeDetectionOptions(SignalOptions):
    labels: list[str] | None = Field(
        default=["real", "fake"],
        min_length=2,
        max_length=2,
        description="what real and fake are called in the data",
    )
    image_size: int | None = Field(
        default=None, ge=1, description="side in pixels; default: the image processor's own"
    )
    augment: bool = Field(default=False, description="change the training frames, see `data.augment`")
    augment_seed: int = Field(default=0, ge=0, description="of what is drawn for that")
    pairing: Pairing = Field(
        default="all",
        description="all training videos; or half of the real ones with their own fakes (paired), or with as many others (unpaired)",
    )
    pairing_seed: int = Field(default=0, ge=0, description="which sources are taken then")
    pooling: Pooling = Field(default="mean", description="a video's score of its frames' scores")
    fpr: list[float] = Field(
        default=[0.1, 0.01], min_length=1, description="false positive rates at which tpr_at_<rate> is told"
    )
    metric: Literal["auroc", "map", "eer"] = Field(
        default="auroc", description="what decides which checkpoint is best"
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="`predict` says fake from this probability on (GenD's demo: 0.1)"
    )
    frames: int = Field(default=32, ge=1, description="frames of a video that `predict` looks at")
    detector: str | None = Field(
        default=None, description="a program that finds faces for `predict`, see `data.faces.crops`"
    )
    boxes: str | None = Field(default=None, description="or a file of the faces' boxes")
    crop_scale: float = Field(default=SCALE, gt=0, description="side of a face's crop, of its box's")


@register_task("deepfake-detection")
class DeepfakeDetection(SignalClassification):
    """Columns: image and label; and where there are such video, dataset, pair and group (see `data.readers.frames`).

    The model learns frames. A video's score is the mean of its frames' probabilities of being fake, a data set's figures are over
    videos, and the figures over several data sets are the means of theirs. `predict` takes paths of pictures, of videos and of
    folders of frames, PIL images and arrays.
    """

    Options = DeepfakeDetectionOptions
    options: DeepfakeDetectionOptions
    column = "image"
    prefer: ClassVar[Mapping[str, str]] = {"text": "frames", "folder": "frames"}

    @property
    def primary_metric(self) -> str:
        return self.options.metric

    @property
    def greater_is_better(self) -> bool:  # type: ignore[override]  # of the metric that is chosen
        return self.options.metric != "eer"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Any:
        return load_image_processor(encoder_spec(model), self.options.image_size)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require(self.column, "label")
        _require_apart(splits)
        if self.options.pairing != "all":
            splits.require("video", "pair")
        splits = Splits(splits, splits.notes)
        if "train" in splits:
            splits["train"] = chosen(
                splits["train"], self.options.pairing, self.options.pairing_seed, self._real
            )
        self.sets = sorted({name for split in splits.values() for name in _names(split, "dataset")})
        prepared = super().prepare(splits, processor)
        _require_both(splits, self._real)
        notes = [*prepared.notes, *(self._told(name, split) for name, split in splits.items())]
        own = self.options
        if own.augment and "train" in prepared.splits:
            prepared.splits["train"] = AugmentedPictures(
                prepared["train"], self.column, to_rgb, own.augment_seed
            )
        aside = ("videos", "sets")
        return replace(prepared, notes=notes, aside=aside, label_names=("labels", *aside))

    def dataset(self, split: Split, labels: list[int], processor: Any) -> Any:
        rows = with_labels(split, labels)
        videos, numbers = _names(split, "video"), {name: i for i, name in enumerate(self.sets)}
        _, which = np.unique(videos, return_inverse=True)
        rows = rows.add_column("videos", which.reshape(-1).tolist())
        return rows.add_column("sets", [numbers[name] for name in _names(split, "dataset")])

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        return FrameCollator(processor)

    def _told(self, name: str, split: Split) -> str:
        """Frames and videos of each class, and how many fakes stand with their source."""
        labels = [str(label) for label in _labels(split)]
        counts = Counter(labels)
        videos = Counter(dict(zip(_names(split, "video"), labels, strict=True)).values())
        parts = [f"{counts[label]} {label} frames of {videos[label]} videos" for label in sorted(counts)]
        told = f"{name}: " + ", ".join(parts)
        if {"video", "pair"} <= set(split.rows.column_names):
            share = paired_share(videos_of(split, self._real))
            told += f"; {share:.0%} of the fake videos stand with the real one they were made of"
        return told + "."

    @property
    def _real(self) -> str:
        return (self.options.labels or ["real"])[0]

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `feature-classifier`: as the recipe names it, or around the encoder that it names."""
        return load_around(model, MODEL, labels=2)

    def head_patterns(self, model: nn.Module) -> list[str]:
        return ["head"]

    # -- scores --------------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        """A folder of frames is one video."""
        return [Given(word, word) for word in words]

    def scores(self, result: Any) -> Scores | None:
        """Of frames; the labels stand first among what `metrics` gets."""
        return softmax_scores(result.predictions, result.label_ids[0])

    def metrics(self, result: Any) -> dict[str, float]:
        logits = result.predictions[0] if isinstance(result.predictions, tuple) else result.predictions
        labels, videos, sets = (np.asarray(column) for column in result.label_ids)
        scores = torch.as_tensor(np.asarray(logits)).double().softmax(-1)[:, 1].numpy()
        found = table(scores, labels, videos, sets, self.sets, self.options.fpr, self.options.pooling)
        return {**found, "accuracy": float(((scores >= self.options.threshold) == labels).mean())}

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Whether each picture or video is real.

        Returns a list of {"label", "score" (of the label), "scores" (of both), "frames" (how many were looked at)}.

        Raises:
            DataError: an input that cannot be read, or in which no face is found.
        """
        names, found = self.labels or ["real", "fake"], [list[float]() for _ in inputs]
        collate, waiting = ImageCollator(processor), list[tuple[int, Any]]()

        def score(part: list[tuple[int, Any]], device: torch.device) -> None:
            batch = to_device(collate([{"image": picture} for _, picture in part]), device)
            fake = model(**batch)["logits"].double().softmax(-1)[:, 1].tolist()
            for (number, _), one in zip(part, fake, strict=True):
                found[number].append(one)

        with evaluating(model) as device:
            for one in self._faces(inputs):
                waiting.append(one)
                if len(waiting) == batch_size:
                    score(waiting, device)
                    waiting.clear()
            if waiting:
                score(waiting, device)
        pool = np.mean if self.options.pooling == "mean" else np.median
        return [self._answer(float(pool(scores)), len(scores), names) for scores in found]

    def _answer(self, fake: float, count: int, names: Sequence[str]) -> dict[str, Any]:
        scores = {names[0]: round(1 - fake, 6), names[1]: round(fake, 6)}
        label = names[1] if fake >= self.options.threshold else names[0]
        return {"label": label, "score": scores[label], "scores": scores, "frames": count}

    def _faces(self, inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Number of the input, and a face of it; all of the picture where nothing tells where faces are."""
        options = self.options
        find = FaceFinder(options.detector, options.boxes, options.crop_scale)
        for number, one in enumerate(inputs):
            if not isinstance(one, str | Path):
                seen = [(0, to_rgb(one))]
            else:
                # more than are wanted: in some of them there may be no face
                seen = frames(Path(one), options.frames * (2 if find.looks else 1))
            yield from ((number, face) for _, face in find(one, seen)[: options.frames])


class FrameCollator(ImageCollator):
    """The pictures' batch, with the numbers of their videos and data sets."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in ("videos", "sets") if name in rows[0]}  # fmt: skip


def _names(split: Split, column: str) -> list[str]:
    """A column as text; without it, each row is a video of its own, and all are of one data set."""
    if column in split.rows.column_names:
        return [str(value) for value in split.rows[column]]
    return [str(i) for i in range(len(split))] if column == "video" else ["data"] * len(split)


def _labels(split: Split) -> list[Any]:
    feature = split.rows.features["label"]
    values = list(split.rows["label"])
    return [feature.int2str(v) for v in values] if hasattr(feature, "int2str") else values


def _require_apart(splits: Splits) -> None:
    """No video may be in two splits: its frames are all but the same.

    Raises:
        DataError: names one.
    """
    seen: dict[str, str] = {}
    for name, split in splits.items():
        if "video" not in split.rows.column_names:
            continue
        for row, video in enumerate(split.rows["video"]):
            if seen.setdefault(str(video), name) != name:
                raise DataError(
                    f"{split.where(row)}: frames of the video {video!r} are in both {seen[str(video)]} and {name}.\n"
                    "  Give each split its own videos, or hold whole ones out: data.group=group, or data.group=video."
                )


def _require_both(splits: Splits, real: str) -> None:
    """Every data set that is scored needs real and fake videos.

    Raises:
        DataError: names the data set.
    """
    for name in ("validation", "test"):
        split = splits.get(name)
        if split is None:
            continue
        kinds: dict[str, set[bool]] = {}
        for one, label in zip(_names(split, "dataset"), _labels(split), strict=True):
            kinds.setdefault(one, set()).add(str(label) == real)
        for one, found in kinds.items():
            if len(found) == 1:
                raise DataError(
                    f"{split.source}: all videos of {one} in the {name} split are {'real' if found == {True} else 'fake'}; "
                    "its figures need both."
                )
