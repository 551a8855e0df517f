"""Expression recognition: what a face in a clip expresses, told by frames, parts of the face, landmarks and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError
from adaptome.data.faces.crops import SCALE
from adaptome.data.faces.finding import FaceFinder
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Splits
from adaptome.data.video import ENDINGS as VIDEOS
from adaptome.data.video import is_video
from adaptome.report.shown import Ranked, Shown, side_by_side
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.class_texts import NEGATIVE, POSITIVE, class_texts, spoken
from adaptome.tasks.clip_processor import load_clip_processor
from adaptome.tasks.clip_rows import ClipRows, Words, based
from adaptome.tasks.clips import DESCRIPTION, ClipCollator, Clipping, Sources, without_words
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.inference import chunks, evaluating, readable, to_device
from adaptome.tasks.labels import LabelSet, labels_of_train, numbers
from adaptome.tasks.metrics import recall_metrics
from adaptome.tasks.scores import Scores, softmax_scores
from adaptome.tasks.showing import Given

MODEL = "video-prompt-classifier"
Stream = Literal["frames", "parsing", "landmarks", "description"]


class ExpressionRecognitionOptions(TaskOptions):
    labels: list[str] | None = Field(
        default=None,
        min_length=2,
        description="the classes in the order of their numbers; default: from train",
    )
    first_label: Literal[0, 1] | None = Field(
        default=None,
        description="number of the first class in the data; default: 1 where 0 never occurs and the last one's does",
    )
    zero_shot: list[str] | None = Field(
        default=None,
        min_length=2,
        description="classes of another data set to tell apart by their words, without the context learned",
    )
    texts: dict[str, list[str]] | None = Field(
        default=None,
        description="what is seen of a class, in parts; default: of known expressions, see `tasks.class_texts`",
    )
    positive: str = Field(default=POSITIVE, description="a class's text: {label}, {shown}, {denied}")
    negative: str = Field(default=NEGATIVE, description="the text of what it does not show")
    streams: list[Stream] = Field(
        default=["frames", "parsing", "landmarks", "description"],
        min_length=1,
        description="what is looked at, description last",
    )
    frames: int = Field(default=16, ge=1, description="of each clip: one of each of so many equal parts")
    image_size: int | None = Field(
        default=None, ge=8, description="side in pixels; default: the image processor's own"
    )
    parsing: str | None = Field(default=None, description="folder of masks by clip, see `data.faces.streams`")
    landmarks: str | None = Field(default=None, description="folder of landmarks by clip")
    descriptions: str | None = Field(
        default=None, description="file of descriptions by clip: .json, .jsonl or .csv"
    )
    hide: list[str] | None = Field(
        default=None,
        description="words to take out of descriptions; default: the classes' names and their other forms (happy), which would tell the answer",
    )
    unreadable: Literal["skip", "error"] = Field(
        default="skip", description="clips without a frame that can be read: left out and told, or refused"
    )
    augment: bool = Field(
        default=False, description="mirror, turn, scale and tint training clips, all streams alike"
    )
    augment_seed: int = Field(default=0, ge=0, description="of what is drawn for that, and of the frames")
    metric: Literal["war", "uar"] = Field(default="war", description="what decides which checkpoint is best")
    detector: str | None = Field(
        default=None, description="a program that finds faces, see `data.faces.crops`"
    )
    boxes: str | None = Field(
        default=None, description="or a file of the faces' boxes; default: clips of faces alone"
    )
    crop_scale: float = Field(default=SCALE, gt=0, description="side of a face's crop, of its box's")  # fmt: skip


@register_task("expression-recognition")
class ExpressionRecognition(Task):
    """Columns: video (a file, a folder of frames, or an array [frames, h, w, 3]) and label; and where there are such parsing, landmarks,
    description, clip (its name, by which these are found in files) and missing (streams that a row lacks).

    `predict` takes paths of videos, of folders of frames and of pictures, arrays, and mappings of streams.
    """

    Options = ExpressionRecognitionOptions
    options: ExpressionRecognitionOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "clips", "folder": "clips"}
    files = "video"
    takes = ENDINGS | VIDEOS

    @property
    def primary_metric(self) -> str:
        return self.options.metric

    @property
    def classes(self) -> list[str]:
        """Names of the classes that are told apart: those learned, or those of another data set."""
        return list(self.options.zero_shot or self.labels or self.options.labels or [])

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Any:
        return load_clip_processor(encoder_spec(model), self.options.image_size)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        if self.options.zero_shot is not None:
            # what was trained on has other classes
            splits = Splits({name: split for name, split in splits.items() if name == "test"}, splits.notes)
            if not splits:
                raise DataError("task.zero_shot: give the other data set as data.test.")
        splits.require("video", "label")
        splits, notes = based(splits, self.classes, self.options.first_label)
        labels = LabelSet(self.classes) if self.classes else labels_of_train(splits, "label", None)
        if self.options.zero_shot is None:
            self.labels = labels.names
        made, sources, own = {}, self._sources(), self.options
        for name, split in splits.items():
            rows = ClipRows(
                split, numbers(split, name, "label", labels), self.clipping(processor), sources, Words(self.hidden, processor),
                name == "train", own.augment, own.augment_seed, own.unreadable == "error",
            )  # fmt: skip
            notes += rows.told(name)
            made[name] = rows
        collator = ClipCollator(processor, self.options.streams)
        return Prepared(made, collator, self.labels, remove_unused_columns=False, notes=notes)

    def _sources(self) -> Sources:
        own = self.options
        return Sources.of(own.parsing, own.landmarks, own.descriptions)

    def clipping(self, processor: Any) -> Clipping:
        """How clips are looked at."""
        own = self.options
        return Clipping(tuple(own.streams), own.frames, processor.size, self._finder())

    def _finder(self) -> FaceFinder:
        return FaceFinder(self.options.detector, self.options.boxes, self.options.crop_scale)

    def inputs(self, rows: Any) -> list[Any]:
        """Mappings of what there is of each stream; paths stand as they are."""
        sources = self._sources()
        return [sources.find(row) for row in rows.with_format("numpy")]

    def truths(self, rows: Any) -> list[Any] | None:
        return [str(label) for label in rows["label"]] if "label" in rows.column_names else None

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `video-prompt-classifier`: as the recipe names it, or around the CLIP that it names; it knows the classes' texts."""
        own, known = self.options, self.labels or self.options.labels or []
        built: Any = load_around(
            model, MODEL, labels=len(known), streams=list(own.streams), frames=own.frames
        )
        if processor is not None:
            self.tell_classes(built, processor)
        return built

    def tell_classes(self, model: Any, processor: Any) -> None:
        """Give the model the texts of the classes; those of another data set without the context that was learned."""
        own, context = self.options, model.settings.context if self.options.zero_shot is None else 0
        given = own.texts or {}
        if own.zero_shot is not None:  # those of the classes that were learned are no others' texts
            given = {label: parts for label, parts in given.items() if label in own.zero_shot}
        texts = class_texts(self.classes, given, own.positive, own.negative)
        positive, negative = (processor.ids(kind, context) for kind in texts)
        model.set_classes(positive, negative, bool(context))

    def head_patterns(self, model: nn.Module) -> list[str]:
        """What is trained beside the adapters: context before the classes' words, the frames' vectors, and what weighs the streams."""
        return [name for name in ("prompts", "time", "fusion") if name in dict(model.named_children())]

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        """Write the CLIP alone, from which a run with other classes can start."""
        own: Any = model
        own.encoder.save_pretrained(folder)
        processor.save_pretrained(folder)

    # -- scores --------------------------------------------------------------------------------------------------------

    def scores(self, result: Any) -> Scores | None:
        return softmax_scores(result.predictions, result.label_ids)

    def metrics(self, result: Any) -> dict[str, float]:
        return recall_metrics(argmax(result.predictions), np.asarray(result.label_ids))

    # -- use -----------------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        """A video, a picture or a folder of frames is one clip; a folder of videos or of such folders stands for those in it."""
        found: list[Given] = []
        for word in words:
            path = Path(word)
            if not path.exists() or (path.is_file() and path.suffix.lower() not in self.takes):
                raise DataError(f"no clip: {word}. This run takes videos ({', '.join(sorted(VIDEOS))}), pictures, and folders of frames.")  # fmt: skip
            inside = sorted(f for f in path.iterdir() if f.is_dir() or is_video(f)) if path.is_dir() else []
            clips = inside or [path]
            found += [Given(str(one), str(one)) for one in clips]
        return found

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """The class of each clip.

        Returns a list of {"label", "score", "scores" (by class), "streams" (the weight of each that was there), "frames" (how many
        were looked at)}.

        Raises:
            DataError: a clip that cannot be read, or in which no face is found; names it.
        """
        clipping, sources, made = self.clipping(processor), self._sources(), list[Any]()
        collate, names = ClipCollator(processor, self.options.streams), self.classes
        with evaluating(model) as device:
            for part in chunks(inputs, batch_size):
                seen = [clipping.seen(self._found(one, sources)) for one in part]
                outputs = model(**to_device(collate(seen), device))
                shares, weights = outputs["logits"].float().softmax(-1).cpu(), outputs["stream_weights"].cpu()
                for row, weight, one in zip(shares, weights, seen, strict=True):
                    told = {s: round(float(w), 6) for s, w in zip(self.options.streams, weight, strict=True) if w > 0}  # fmt: skip
                    made.append({**readable(names, row), "streams": told, "frames": len(one["strip"])})
        return made

    def _found(self, one: Any, sources: Sources) -> dict[str, Any]:
        """What there is of a user's clip."""
        row = dict(one) if isinstance(one, Mapping) else {"video": one}
        if "frames" in row:
            row["video"] = row.pop("frames")
        found = sources.find(row)
        if DESCRIPTION in found:
            found[DESCRIPTION] = without_words(found[DESCRIPTION], self.hidden)
        return found

    @property
    def hidden(self) -> list[str]:
        """Words that descriptions must not have."""
        return spoken(self.classes) if self.options.hide is None else self.options.hide

    def shown(self, one: Any, prediction: Any) -> Shown:
        """All classes with their probabilities, and the frames side by side."""
        ranked = sorted(prediction["scores"].items(), key=lambda item: -item[1])
        answer = ", ".join(f"{label} {share:.1%}" for label, share in ranked).replace("%", " %")
        own = self.options
        clipping = Clipping(("frames",), own.frames, 1, self._finder())
        frames = clipping.seen(self._found(one, self._sources()))["strip"]
        made = {"strip": side_by_side(frames)} if frames else {}
        return Shown(answer, made=made, picture=made.get("strip"), ranked=tuple(Ranked(*each) for each in ranked))  # fmt: skip
