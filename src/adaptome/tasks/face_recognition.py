"""Face recognition: embeddings learned by whose face it is, scored on people that training did not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.data.splits import Split, Splits
from adaptome.models.base import is_composite, read_configuration
from adaptome.models.face_swin import KIND
from adaptome.tasks.base import ModelSpec, Prepared, TaskOptions, register_task
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.face_answers import FaceAnswers
from adaptome.tasks.face_options import FaceRecognitionOptions
from adaptome.tasks.face_protocols import Protocol, protocol_of, scored
from adaptome.tasks.face_reading import FaceCollator, FaceReader, MirroredRows, Quality
from adaptome.tasks.face_rows import named_apart, require_apart, scale_on, usable
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.models import load_image_processor

MODEL = "face-recogniser"
PARTS = ("train", "validation", "test")


@register_task("face-recognition")
class FaceRecognition(FaceAnswers):
    """Columns: image and label, whose face it is; where there are such role, template, pairs, box (`data.readers.faces`) and quality.

    Training learns the people of train. Validation and test are of other people: they have no loss, and are scored by their pairs, by
    gallery and probes, or everybody against everybody (`tasks.face_scores`). `predict` takes pictures by twos and says how alike they are;
    with a gallery it ranks the people in it.
    """

    Options = FaceRecognitionOptions
    options: FaceRecognitionOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "faces", "folder": "faces", "csv": "faces"}
    later_options = ("threshold", "far", "fpir", "ranks", "pool", "templates", "detector")

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self.threshold = self.options.threshold
        self.protocols: dict[int, Protocol] = {}
        self._embeds_anew = False

    @cached_property
    def reader(self) -> FaceReader:  # type: ignore[override]  # made when its files are first needed
        own = self.options
        return FaceReader(own.landmarks, own.detector, own.crop_scale, own.without_face == "whole")

    @cached_property
    def quality(self) -> Quality:
        """Scores of pictures."""
        return Quality(self.options.quality, self.options.quality_file, self.options.quality_scale)

    @property
    def primary_metric(self) -> str:
        return self.options.metric

    @property
    def greater_is_better(self) -> bool:  # type: ignore[override]  # of the metric that is chosen
        return self.options.metric != "eer"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Any:
        source, size = encoder_spec(model), self.options.image_size
        config = source.from_config or {}
        if model.name is not None and is_composite(model.name):
            config = read_configuration(Path(model.name))[1].get("encoder", {}).get("from_config") or {}
        if config.get("model_type") != KIND:
            return load_image_processor(source, size)
        side = size or config.get("image_size", 120)
        like = {
            "model_type": "vit",
            "image_size": side,
        }  # pixels from -1 to 1, as the recogniser was trained on
        return load_image_processor(
            SimpleNamespace(name=None, tokenizer=None, revision=None, from_config=like)
        )

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("image", "label")
        splits, notes = usable(
            splits, self.reader, self.options.without_face == "skip", self.options.check_pictures
        )
        splits = named_apart(splits, self.options.same_names)
        require_apart(splits, self.options.overlap == "allow")
        labels = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = labels.names
        if self.options.quality == "column":
            splits.require("quality")
        if self.options.quality != "none" and self.options.quality_scale is None:
            self.options.quality_scale = scale_on(
                splits.get("train") or next(iter(splits.values())), self.reader, self.quality
            )
            self.quality.scale = self.options.quality_scale
        made: dict[str, Any] = {}
        for name, split in splits.items():
            rows = split.rows.select_columns(
                [c for c in ("image", "box", "quality") if c in split.rows.column_names]
            )
            rows = rows.with_format("numpy") if hasattr(rows.features["image"], "shape") else rows
            part = PARTS.index(name)
            rows = rows.add_column("rows", np.arange(len(rows))).add_column("parts", np.full(len(rows), part))
            if name == "train":
                rows = rows.add_column("people", numbers(split, name, "label", labels))
                made[name] = MirroredRows(rows, self.options.mirror_seed) if self.options.mirror else rows
            else:
                self.protocols[part] = protocol_of(split, self.options.templates == "person")
                made[name] = rows
        notes += [self._told(name, split) for name, split in splits.items()]
        aside = ("rows", "parts", "quality")
        measured = () if self.options.quality == "none" else ("quality",)
        return Prepared(
            made, self.collator(processor), self.labels, remove_unused_columns=False, notes=notes, aside=aside,
            label_names=("rows", "parts", *measured), lossless=frozenset({"validation", "test"}),
        )  # fmt: skip

    def collator(self, processor: Any, find: bool = False) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """What makes batches."""
        return FaceCollator(processor, self.reader, self.quality, find)

    def _told(self, name: str, split: Split) -> str:
        """Faces and people, and what is compared."""
        counts = Counter(split.rows["label"])
        told = f"{name}: {len(split)} faces of {len(counts)} people"
        made = self.protocols.get(PARTS.index(name))
        if name == "train" or made is None:
            return f"{told}, {min(counts.values())} to {max(counts.values())} of each."
        if len(made.pairs):
            return f"{told}, in {len(made.pairs)} pairs."
        how = "as their roles say" if made.has_roles else "each person's first face and the others"
        return f"{told}: {len(made.gallery)} in the gallery and {len(made.probes)} probes, {how}."

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `face-recogniser` with a new head for the people of training."""
        people = len(self.labels or ())
        made: Any = load_around(model, MODEL, people=people)
        made.settings.sample = self.options.sample
        started = model.name is not None and is_composite(model.name)
        self._embeds_anew = not started
        if started:
            made.renew_head(people)
        built: nn.Module = made
        return built

    def head_patterns(self, model: nn.Module) -> list[str]:
        """The head; the embedding too where no recogniser was loaded, since it is as new."""
        return ["head", "embedding"] if self._embeds_anew else ["head"]

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"quality": batch["quality"]} if "quality" in batch else {}

    # -- scores --------------------------------------------------------------------------------------------------------

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """The embeddings, which stand first."""
        return logits[0] if isinstance(logits, tuple) else logits

    def metrics(self, result: Any) -> dict[str, float]:
        rows, parts, *quality = (np.asarray(column) for column in result.label_ids)
        made = self.protocols.get(int(parts[0]))
        if made is None:
            return {}
        _, first = np.unique(rows, return_index=True)  # several processes may see a row twice
        features = np.asarray(result.predictions)[first]
        own = self.options
        found = scored(
            made, features, quality[0][first] if quality else None, own.pool, own.far, own.ranks, own.fpir
        )
        if own.metric not in found:
            raise DataError(
                f"task.metric={own.metric}: this split does not give it. It gives {', '.join(found)}; "
                "rates need as many pairs of different people, or strangers, as one over the rate."
            )
        return found

    def learned(self, result: Mapping[str, Any]) -> None:
        """The threshold, as validation told it at the step that was kept; without validation, as the final evaluation did."""
        if self.options.threshold is not None:
            return
        told = [log for log in result.get("history", ()) if "eval_threshold" in log]
        kept = [log for log in told if log.get("step") == result.get("best_step")] or told
        found = kept[-1]["eval_threshold"] if kept else result.get("metrics", {}).get("threshold")
        self.threshold = None if found is None else float(found)
