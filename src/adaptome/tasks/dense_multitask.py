"""Several dense tasks on one picture: segmentation, parts, saliency, edges, surface normals, depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.data.geometry import Geometry
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.models.dense_losses import Kind
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.composites import encoder_spec, load_around
from adaptome.tasks.dense_maps import OUTSIDE, pictured, read_map
from adaptome.tasks.dense_scores import FIGURES, counted, delta_m, figures
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.inference import chunks, evaluating
from adaptome.tasks.pixels import PixelProcessor, load_pixel_processor
from adaptome.tasks.showing import covered

MODEL = "dense-multitask"
#: the papers' changes of training pictures
GEOMETRY = Geometry(mirror=True, degrees=20, scale=(0.75, 1.25))
#: task -> its kind, classes and the weight of its loss in the papers
KNOWN: dict[str, tuple[Kind, int, float]] = {
    "semseg": ("classes", 21, 1),
    "human_parts": ("classes", 7, 2),
    "sal": ("saliency", 1, 5),
    "normals": ("normals", 3, 10),
    "edge": ("edges", 1, 50),
    "depth": ("depth", 1, 1),
}


class DenseMultitaskOptions(TaskOptions):
    tasks: list[str] = Field(
        default=["semseg", "human_parts", "sal", "normals"],
        min_length=1,
        description="columns of the data, each a task",
    )
    kinds: dict[str, Kind] = Field(
        default_factory=dict,
        description="of tasks of other names: classes, saliency, edges, normals or depth",
    )
    classes: dict[str, int | list[str]] = Field(
        default_factory=dict,
        description="of tasks of kind classes: their names or number; default: 21 of semseg, 7 of human_parts",
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="of the tasks' losses; default: the papers'"
    )
    single: dict[str, float] = Field(
        default_factory=dict,
        description="figures of models of one task each: then delta_m, the mean gain over them in percent, is told and decides",
    )
    image_size: int = Field(
        default=448, ge=8, description="side in pixels that pictures and maps are brought to"
    )
    augment: bool = Field(
        default=False, description="mirror, turn and scale the training pictures, see `data.geometry`"
    )
    augment_seed: int = Field(default=0, ge=0, description="of what is drawn for that")

    @model_validator(mode="after")
    def _known(self) -> DenseMultitaskOptions:
        for name in self.tasks:
            kind = self.kinds.get(name, KNOWN.get(name, (None,))[0])
            if kind is None:
                raise ValueError(
                    f"kinds: say of which kind {name!r} is; known by name are {', '.join(KNOWN)}"
                )
            if kind == "classes" and name not in self.classes and name not in KNOWN:
                raise ValueError(f"classes: say how many {name!r} has")
        for key in ("kinds", "classes", "weights", "single"):
            known = self.tasks if key == "single" else [*self.tasks, *KNOWN]
            if stray := [name for name in getattr(self, key) if name not in known]:
                raise ValueError(f"{key} names {stray[0]!r}, which is none of tasks")
        return self

    def kind(self, task: str) -> Kind:
        return self.kinds.get(task) or KNOWN[task][0]

    def outputs(self, task: str) -> int:
        """Channels of a task's map."""
        kind, told = self.kind(task), self.classes.get(task)
        if kind == "classes":
            return KNOWN[task][1] if told is None else told if isinstance(told, int) else len(told)
        return 3 if kind == "normals" else 1

    def names(self, task: str) -> list[str] | None:
        told = self.classes.get(task)
        return told if isinstance(told, list) else None


@register_task("dense-multitask")
class DenseMultitask(Task):
    """Columns: image, and one for each task: files, or arrays (class numbers, 0 and 1, directions of normals, depths).

    A picture may lack some of the maps; they count for nothing. `predict` takes paths, PIL images and arrays, and draws all tasks beside
    the picture.
    """

    Options = DenseMultitaskOptions
    options: DenseMultitaskOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "dense"}
    takes = ENDINGS

    @property
    def primary_metric(self) -> str:
        return "delta_m" if self.options.single else "loss"

    @property
    def greater_is_better(self) -> bool:  # type: ignore[override]  # of the metric that decides
        return bool(self.options.single)

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> PixelProcessor:
        return load_pixel_processor(encoder_spec(model))

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("image")
        for name, split in splits.items():
            for task in self.options.tasks:
                if task not in split.rows.column_names:
                    raise DataError(
                        f"{split.source}: the {name} split has no column {task!r}. Columns there: {', '.join(split.rows.column_names)}.\n"
                        "  Name those that there are: task.tasks."
                    )
        made = {name: Views(split, self.options, name == "train") for name, split in splits.items()}
        return Prepared(made, ViewCollator(processor), None, remove_unused_columns=False)

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `dense-multitask`: as the recipe names it, or around the encoder that it names."""
        own = self.options
        tasks = {
            name: {"kind": own.kind(name), "outputs": own.outputs(name), "weight": self.weight(name)}
            for name in own.tasks
        }
        return load_around(model, MODEL, tasks=tasks)

    def weight(self, task: str) -> float:
        return self.options.weights.get(task, KNOWN.get(task, ("", 0, 1.0))[2])

    def head_patterns(self, model: nn.Module) -> list[str]:
        return ["decoders"]

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        """The encoder alone, for a run of another task to start from."""
        encoder: Any = model.encoder
        encoder.save_pretrained(folder)
        processor.save_pretrained(folder)

    # -- scores --------------------------------------------------------------------------------------------------------

    def counted(self, logits: Any, labels: Any) -> Tensor:
        maps = logits if isinstance(logits, tuple) else (logits,)
        found = zip(self.options.tasks, maps, strict=True)
        return torch.cat([counted(self.options.kind(t), m, labels[t]) for t, m in found], 1)

    def metrics(self, result: Any) -> dict[str, float]:
        counts, made, at, own = np.asarray(result.predictions), dict[str, float](), 0, self.options
        for task in own.tasks:
            size = width(own.kind(task), own.outputs(task))
            made |= {
                f"{name}_{task}": v for name, v in figures(own.kind(task), counts[:, at : at + size]).items()
            }
            at += size
        if own.single:
            keys = {task: FIGURES[own.kind(task)] for task in own.single}
            found = {task: made[f"{figure}_{task}"] for task, (figure, _) in keys.items()}
            made["delta_m"] = delta_m(found, own.single, {task: less for task, (_, less) in keys.items()})
        return made

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Every task's map of each picture, at the picture's own size.

        Returns a list of {"maps": task -> array: class numbers [h, w], probabilities [h, w], directions [h, w, 3] or depths [h, w]}.
        """
        own, made, side = self.options, list[Any](), self.options.image_size
        with evaluating(model) as device:
            for part in chunks(inputs, batch_size):
                pictures = [to_rgb(one) for one in part]
                pixels = processor([np.asarray(one.resize((side, side))) for one in pictures]).to(device)
                found = model(pixel_values=pixels)
                for i, picture in enumerate(pictures):
                    size = picture.size[::-1]
                    made.append(
                        {"maps": {t: pictured(own.kind(t), found[t][i : i + 1], size) for t in own.tasks}}
                    )
        return made

    def shown(self, one: Any, prediction: Any) -> Shown:
        from adaptome.tasks.dense_maps import panel

        picture, own = to_rgb(one), self.options
        first = next((t for t in own.tasks if own.kind(t) == "classes"), None)
        answer = covered(prediction["maps"][first], own.names(first)) if first else ""
        made = panel(picture, {t: (own.kind(t), prediction["maps"][t]) for t in own.tasks})
        return Shown(answer, picture=picture, made=made)


def width(kind: Kind, outputs: int) -> int:
    """How many numbers `dense_scores.counted` keeps of a picture."""
    blank = torch.zeros(1, 1, 1, 3) if kind == "normals" else torch.zeros(1, 1, 1)
    return counted(kind, torch.zeros(1, outputs, 1, 1), blank).shape[1]


class Views:
    """Rows as a picture and its maps at the option's size; those of training are changed anew in every epoch."""

    def __init__(self, split: Split, options: DenseMultitaskOptions, training: bool):
        self.options, self.training, self.epoch = options, training, 0
        columns = ["image", *options.tasks]
        self.rows = split.rows.select_columns(columns).with_format("numpy")

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, own = self.rows[int(index)], self.options
        one = row["image"]
        picture = to_rgb(str(one) if isinstance(one, np.str_) else one)
        size = (own.image_size, own.image_size)
        made: dict[str, Any] = {"image": np.asarray(picture.resize(size[::-1]))}
        for task in own.tasks:
            made[task] = read_map(own.kind(task), row[task], picture.size[::-1], size, own.outputs(task))
        if self.training and own.augment:
            drawn = GEOMETRY.draw(np.random.default_rng((own.augment_seed, self.epoch, int(index))), *size)
            made["image"] = drawn.picture(made["image"])
            for task in own.tasks:
                made[task] = drawn.numbers(made[task], OUTSIDE[own.kind(task)])
                if own.kind(task) == "normals":
                    made[task] = drawn.vectors(made[task])
        return made


class ViewCollator:
    """Rows of `Views` -> pixel_values [batch, 3, h, w], and labels: task -> [batch, h, w] or [batch, h, w, 3]."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = {
            name: torch.from_numpy(np.stack([row[name] for row in rows]))
            for name in rows[0]
            if name != "image"
        }
        return {"pixel_values": self.processor([row["image"] for row in rows]), "labels": labels}
