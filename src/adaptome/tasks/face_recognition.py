"""Face recognition: embeddings learned by whose face it is, scored on people that training did not have."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.core.steer import steer
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.report.shown import Ranked, Shown
from adaptome.tasks.base import Gallery, ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.face_gallery import indexed
from adaptome.tasks.face_protocols import Protocol, protocol_of, scored
from adaptome.tasks.face_reading import FaceCollator, FaceReader, Measure, MirroredRows, Quality, opened
from adaptome.tasks.face_rows import named_apart, require_apart, scale_on, usable
from adaptome.tasks.face_scores import unit
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.models import load_image_processor
from adaptome.tasks.showing import Given, gathered, shown

logger = logging.getLogger(__name__)
MODEL = "face-recogniser"
PARTS = ("train", "validation", "test")


class FaceRecognitionOptions(TaskOptions):
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the people of training; default: from train"
    )
    image_size: int | None = Field(default=None, ge=1, description="side in pixels; default: the model's own")
    quality: Measure = Field(
        default="sharpness",
        description="how good a picture is, for adapters that mix by it: measured, from the column `quality`, from a table of scores, or by CNN-IQA",
    )
    quality_file: str | None = Field(
        default=None, description="the table of scores, or CNN-IQA's weights (safetensors)"
    )
    quality_scale: tuple[float, float] | None = Field(
        default=None,
        description="factor and shift on the scores; default: those that give the training pictures a mean of 1/2, and what is measured here a spread of 1",
    )
    landmarks: str | None = Field(
        default=None, description="a file with five points of each face, which is turned upright by them"
    )
    detector: str | None = Field(
        default=None, description="a program that finds faces for `predict`, see `data.faces.crops`"
    )
    crop_scale: float = Field(default=1.0, gt=0, description="side of a face's crop, of ArcFace's")
    without_face: Literal["error", "skip", "whole"] = Field(
        default="error",
        description="pictures that `landmarks` does not tell of: refused, left out and counted, or taken whole",
    )
    check_pictures: bool = Field(
        default=False,
        description="decode every picture first, and leave out those that are cut short, counted and named",
    )
    mirror: bool = Field(
        default=True, description="mirror half of the training pictures, drawn anew in every epoch"
    )
    mirror_seed: int = Field(default=0, ge=0, description="of what is drawn for that")
    overlap: Literal["error", "allow"] = Field(
        default="error", description="people of validation or test whose name is in train too"
    )
    same_names: Literal["error", "same", "different"] = Field(
        default="error", description="people of one name in several training sets"
    )
    templates: Literal["given", "person"] = Field(
        default="given",
        description="templates as the data have them, or one of all gallery pictures of a person",
    )
    pool: Literal["unit", "raw", "quality"] = Field(
        default="unit",
        description="a template's mean: of directions, of embeddings with their lengths, or of directions weighed by quality",
    )
    far: list[float] = Field(
        default=[0.01, 0.001], min_length=1, description="false accept rates at which tar_at_<rate> is told"
    )
    fpir: list[float] = Field(
        default=[0.1, 0.01], description="false positive identification rates at which tpir_at_<rate> is told"
    )
    ranks: list[int] = Field(default=[1, 5, 20], min_length=1, description="k of rank_k")
    metric: str = Field(
        default="auroc", description="what decides which checkpoint is best, e.g. rank_1 or tar_at_0.01"
    )
    threshold: float | None = Field(
        default=None, ge=-1, le=1,
        description="likeness from which on `predict` says same; default: where validation lets the first false accept rate through",
    )  # fmt: skip


@register_task("face-recognition")
class FaceRecognition(Task):
    """Columns: image and label, whose face it is; where there are such role, template, pairs, box (`data.readers.faces`) and quality.

    Training learns the people of train. Validation and test are of other people: they have no loss, and are scored by their pairs, by
    gallery and probes, or everybody against everybody (`tasks.face_scores`). `predict` takes pictures by twos and says how alike they are;
    with a gallery it ranks the people in it.
    """

    Options = FaceRecognitionOptions
    options: FaceRecognitionOptions
    takes = ENDINGS
    prefer: ClassVar[Mapping[str, str]] = {"text": "faces", "folder": "faces", "csv": "faces"}
    later_options = ("threshold", "far", "fpir", "ranks", "pool", "templates", "detector")

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self.reader = FaceReader(
            self.options.landmarks,
            self.options.detector,
            self.options.crop_scale,
            self.options.without_face == "whole",
        )
        self.quality = Quality(self.options.quality, self.options.quality_file, self.options.quality_scale)
        self.threshold = self.options.threshold
        self.protocols: dict[int, Protocol] = {}
        self._embeds_anew = False

    @property
    def primary_metric(self) -> str:
        return self.options.metric

    @property
    def greater_is_better(self) -> bool:  # type: ignore[override]  # of the metric that is chosen
        return self.options.metric != "eer"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Any:
        source, size = encoder_spec(model), self.options.image_size
        if (source.from_config or {}).get("model_type") != "face-swin":
            return load_image_processor(source, size)
        side = size or source.from_config.get("image_size", 120)
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
            self.options.quality_scale = scale_on(splits["train"], self.reader, self.quality)
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
        started = model.name is not None and getattr(made.settings.encoder, "name", None) is None
        self._embeds_anew = not started
        if started:
            made.renew_head(people)
        return made  # type: ignore[no-any-return]

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

    # -- answers -------------------------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        """A pair for every row: by turns with the one before it and with one half the rows away."""
        return [(rows[i], rows[other]) for i, other in enumerate(_partners(len(rows)))]

    def truths(self, rows: Any) -> list[Any]:
        labels = list(rows["label"])
        return [
            "same" if labels[i] == labels[other] else "different"
            for i, other in enumerate(_partners(len(labels)))
        ]

    def given(self, words: Sequence[str]) -> list[Given]:
        """Two pictures, and so on by twos."""
        for word in words:
            if not Path(word).is_file():
                kind = (
                    "is a folder; to rank its pictures, --gallery" if Path(word).is_dir() else "no such file:"
                )
                raise DataError(f"{kind} {word}. This run compares pictures by twos: a.png b.png.")
        if len(words) % 2:
            raise DataError(
                f"{words[-1]} has no counterpart: give pictures by twos, or one with --gallery FOLDER."
            )
        return [Given(f"{a} {b}", (a, b)) for a, b in zip(words[::2], words[1::2], strict=True)]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """How alike two faces are, or what a face is embedded to.

        Args:
            inputs: pairs (tuples or lists of two), or single faces: paths, PIL pictures, arrays, rows.

        Returns a list of {"label" (same or different), "score" (from -1 to 1), "threshold"}, without label where no threshold is known;
        of single faces {"feature" [D] of length 1, "norm", "quality"}.

        Raises:
            DataError: a picture that cannot be read, or in which no face is known or found.
        """
        flat = [face for one in inputs for face in (one if isinstance(one, tuple | list) else (one,))]
        features, quality = self.embedded(model, processor, flat, batch_size)
        directions, at, made = unit(features), 0, list[Any]()
        for one in inputs:
            if isinstance(one, tuple | list):
                made.append(self._compared(float(directions[at] @ directions[at + 1])))
                at += 2
                continue
            score = None if quality is None else round(float(quality[at]), 6)
            made.append(
                {
                    "feature": directions[at].tolist(),
                    "norm": float(np.linalg.norm(features[at])),
                    "quality": score,
                }
            )
            at += 1
        return made

    def _compared(self, likeness: float) -> dict[str, Any]:
        told: dict[str, Any] = {"score": round(likeness, 6)}
        if self.threshold is None:
            return told
        label = "same" if likeness > self.threshold else "different"
        return {"label": label, **told, "threshold": round(self.threshold, 6)}

    def embedded(
        self, model: nn.Module, processor: Any, faces: Sequence[Any], batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings [n, D] of faces, and their qualities [n] where these are measured."""
        collate, features, quality = self.collator(processor, find=True), [], []
        with evaluating(model) as device:
            for part in chunks(list(faces), batch_size):
                batch = to_device(collate([_alone(face) for face in part]), device)
                with steer(**self.facts(batch)):
                    features.append(model(batch["pixel_values"])["embeddings"].float().cpu().numpy())
                quality += batch["quality"].tolist() if "quality" in batch else []
        return np.concatenate(features), np.array(quality) if quality else None

    def ranked(
        self, model: nn.Module, processor: Any, words: Sequence[str], gallery: Gallery, batch_size: int = 32
    ) -> tuple[list[Given], list[Any]]:
        """The gallery's people by their likeness to each picture.

        Returns the pictures, and for each {"label" (unknown where nobody passes the threshold), "score", "ranked": [{"person", "file", "score"}]}.
        """
        given, left = gathered(words, self.takes), list[str]()

        def embed(files: Sequence[str]) -> tuple[np.ndarray, list[int]]:
            good = []
            for number, file in enumerate(files):
                try:
                    self.reader(file, find=True)
                    good.append(number)
                except DataError as error:
                    left.append(str(error))
            if not good:
                return np.zeros((0, 1)), []
            return unit(self.embedded(model, processor, [files[n] for n in good], batch_size)[0]), good

        index = indexed(gallery, embed)
        if left:
            logger.warning("%d pictures of the gallery are left out: %s", len(left), "; ".join(left[:3]))
        probes = unit(self.embedded(model, processor, [one.value for one in given], batch_size)[0])
        return given, [self._answer(index.search(probe, gallery.top)) for probe in probes]

    def _answer(self, best: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
        items = [{"person": who, "file": file, "score": round(score, 6)} for who, file, score in best]
        known = self.threshold is None or best[0][2] > self.threshold
        return {"label": best[0][0] if known else "unknown", "score": items[0]["score"], "ranked": items}

    def shown(self, one: Any, prediction: Any) -> Shown:
        pictures = [opened(face)[1] for face in (one if isinstance(one, tuple | list) else (one,))]
        if "ranked" in prediction:
            items = tuple(Ranked(i["person"], i["score"], i["file"]) for i in prediction["ranked"])
            return Shown(
                f"{prediction['label']} ({prediction['score']:.3f})",
                picture=pictures[0],
                ranked=items,
                bounded=False,
            )
        if "feature" in prediction:
            return shown(one, {"quality": prediction["quality"]}, pictures[0])
        edge = f", same above {prediction['threshold']:.3f}" if "threshold" in prediction else ""
        return Shown(
            f"{prediction.get('label', 'alike')} ({prediction['score']:.3f}{edge})", picture=beside(*pictures)
        )


def _partners(count: int) -> list[int]:
    return [i - 1 if i % 2 else (i + count // 2) % count for i in range(count)]


def _alone(face: Any) -> Any:
    """A face as an example of no split."""
    return (
        {k: v for k, v in face.items() if k in ("image", "box", "quality")}
        if isinstance(face, Mapping) and "image" in face
        else face
    )


def beside(a: Any, b: Any) -> Any:
    """Two PIL pictures side by side, as high as the higher one."""
    from PIL import Image

    high = max(a.height, b.height)
    a, b = (p.resize((max(1, round(p.width * high / p.height)), high)) for p in (a, b))
    made = Image.new("RGB", (a.width + b.width, high))
    made.paste(a, (0, 0))
    made.paste(b, (a.width, 0))
    return made
