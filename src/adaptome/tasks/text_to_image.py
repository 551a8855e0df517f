"""Text to image: a diffusion model trained on pictures with their texts, to draw what they show when it is asked for in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.load import load_splits
from adaptome.data.pictures import TrainingPictures, Treatment, buckets_of
from adaptome.data.splits import Split, Splits
from adaptome.models import load_composite
from adaptome.models.noising import Times
from adaptome.models.text_to_image import TextToImage as Model
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.image_generation import Making, grid, made, to_pixels, told
from adaptome.tasks.models import resolve
from adaptome.tasks.picture_scores import Asked, get_score

COMPOSITE = "text-to-image"
#: columns of pictures
PICTURES = ("image", "condition")
#: references that pictures are held against, at most
REFERENCES = 64


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PriorOptions(_Mapping):
    """Pictures of the subject's class, which stand beside those of the subject in every batch."""

    data: str = Field(description="a folder of pictures; `adaptome generate` makes them of the base")
    prompt: str | None = Field(default=None, description="the text of those that have none")


class TimesOptions(_Mapping):
    """The times that are trained on."""

    density: Literal["uniform", "logit-normal"] = "uniform"
    mean: float = Field(default=0.0, description="logit-normal: of the logit")
    deviation: float = Field(default=1.0, gt=0, description="logit-normal: of the logit")
    least: float = Field(default=0.0, ge=0, lt=1, description="share of the way to noise")
    most: float = Field(default=1.0, gt=0, le=1, description="share of the way to noise")


class TextToImageOptions(TaskOptions):
    resolution: int = Field(default=512, ge=1, description="side of the pictures in pixels; with buckets the root of their area")  # fmt: skip
    buckets: int | None = Field(
        default=None, ge=1, description="keep proportions: shapes in steps of so many pixels (64)"
    )
    crop: Literal["centre", "random", "none"] = Field(
        default="centre", description="what is cut off; none squeezes"
    )
    mirror: bool = Field(default=False, description="mirror pictures by half")
    repeats: int = Field(default=1, ge=1, description="how often an epoch has each picture")
    prompt: str | None = Field(default=None, description="the text of pictures that have none")
    text_dropout: float = Field(default=0.0, ge=0, le=1, description="share of texts that are left out, so that guidance can be used")  # fmt: skip
    prior: PriorOptions | None = Field(
        default=None, description="pictures of the class (prior preservation); weighed by the objective"
    )
    times: TimesOptions = Field(default=TimesOptions(), description="which times are trained on")
    offset_noise: float = Field(
        default=0.0, ge=0, description="noise that is one number for each channel (0.1)"
    )
    distilled_guidance: float = Field(
        default=1.0, description="of models that have guidance as an input (Flux), in training"
    )
    draw_seed: int = Field(default=0, ge=0, description="of the times, noises and crops that are drawn")
    steps: int = Field(default=30, ge=1, description="of the sampler")
    guidance: float = Field(
        default=5.0, ge=0, description="how much the text counts in pictures that are made"
    )
    negative: str = Field(default="", description="what guidance leads away from")
    sampler: str | None = Field(
        default=None, description="a scheduler of diffusers to draw with; default: the model's"
    )
    seed: int = Field(
        default=0, ge=0, description="of the first picture that is made; the next have the next numbers"
    )
    scores: list[str | dict[str, Any]] = Field(
        default_factory=list,
        description="scenes, clip, dino, colours: of the pictures made for the texts of a split",
    )
    samples: list[str] = Field(
        default_factory=list, description="texts of which the report shows pictures as training goes"
    )
    sample_every: int | None = Field(
        default=None, ge=1, description="steps between them; default: a quarter of the run"
    )


@register_task("text-to-image")
class TextToImage(Task):
    """Columns: image and text, and perhaps prior, true of pictures of the class; a split without images is of texts alone, for which pictures are made and scored.

    `predict` takes texts and gives pictures.
    """

    Options: ClassVar[type[TaskOptions]] = TextToImageOptions
    options: TextToImageOptions
    prefer: ClassVar[Mapping[str, str]] = {"folder": "captioned"}
    greater_is_better = False
    later_options: ClassVar[tuple[str, ...]] = (
        "steps", "guidance", "negative", "sampler", "seed", "scores", "samples", "sample_every",
    )  # fmt: skip

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self._references: list[Any] = []
        self._model: Model | None = None

    @property
    def judges(self) -> bool:  # type: ignore[override]  # where scores are asked for
        return bool(self.options.scores)

    @property
    def primary_metric(self) -> str:
        return "loss"

    @property
    def headline(self) -> str:
        return get_score(self.options.scores[0]).headline if self.options.scores else "loss"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Any:
        """There is none: the model's parts have their own."""
        return None

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        texts = {name: self._texts(name, split, self.options.prompt) for name, split in splits.items()}
        drawn = {name for name, split in splits.items() if "image" in split.rows.column_names}
        if "train" in splits and "train" not in drawn:
            splits.require("image")
        how = self._treatment()
        prepared: dict[str, Any] = {}
        for name, split in splits.items():
            if name not in drawn:
                prepared[name] = split.rows
                continue
            train = name == "train"
            kept = how if train else replace(how, mirror=False, drop=0.0, repeats=1, crop="centre")
            own = [i for i, prior in enumerate(_priors(split)) if not prior]
            if not own:
                raise DataError(
                    f"{split.source}: the {name} pictures are all of the class. Hold none out (data.validation_fraction=0), or give the split its own."
                )
            others = self._others(split, texts[name], kept) if train else None
            rows = split.rows if len(own) == len(split) else split.rows.select(own)
            prepared[name] = self.pictures(rows, [texts[name][i] for i in own], kept, others)
        if "train" in drawn:
            rows = prepared["train"].rows
            self._references = [to_rgb(rows[i]["image"]) for i in range(min(len(rows), REFERENCES))]
        asked = frozenset(splits) - drawn
        return Prepared(
            prepared, self.collate, remove_unused_columns=False, label_names=("draws",),
            in_order=bool(how.buckets), only_asked=asked,
        )  # fmt: skip

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Items of `pictures` as the model takes them."""
        return collate(rows)

    def _treatment(self) -> Treatment:
        o = self.options
        shapes = buckets_of(o.resolution, o.buckets) if o.buckets else ()
        return Treatment(o.resolution, shapes, o.crop, o.mirror, o.text_dropout, o.repeats, o.draw_seed)

    def _texts(self, name: str, split: Split, common: str | None) -> list[str]:
        if "text" in split.rows.column_names:
            return [str(text) for text in split.rows["text"]]
        if common is None:
            raise DataError(
                f"{split.source}: the {name} pictures have no texts.\n"
                "  Put a .txt of the same name beside each, or give one for all: task.prompt='a photo of sks dog'."
            )
        return [common] * len(split)

    def _others(self, split: Split, texts: list[str], how: Treatment) -> TrainingPictures | None:
        """The class's pictures: those of the data whose column `prior` is true, or those of the folder that the option names."""
        prior, marked = self.options.prior, [i for i, prior in enumerate(_priors(split)) if prior]
        if prior is None and not marked:
            return None
        if prior is None:
            return self.pictures(split.rows.select(marked), [texts[i] for i in marked], how, prior=True)
        found = load_splits(train=prior.data, validation_fraction=0.0, prefer=self.prefer)
        named = self._texts("class", found["train"], prior.prompt)
        return self.pictures(found["train"].rows, named, how, prior=True)

    def pictures(
        self,
        rows: Any,
        texts: Sequence[str],
        how: Treatment,
        others: TrainingPictures | None = None,
        prior: bool = False,
    ) -> TrainingPictures:
        """Rows as items for the collator."""
        return TrainingPictures(rows, texts, to_rgb, how, others, prior)

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        settings: dict[str, Any] = dict(getattr(model, "settings", {}))
        if getattr(model, "composite", None) is not None:
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
                if isinstance(settings.get(name), str):
                    settings[name] = {"name": resolve(settings[name])}
            spec: Any = SimpleNamespace(composite=model.composite, settings=settings)  # type: ignore[attr-defined]
            own = {"tokenizer": model.tokenizer, "revision": model.revision}
            own = {name: value for name, value in own.items() if value is not None}
            found = load_composite(spec, COMPOSITE, dtype=model.dtype, **own)
        elif model.from_config is not None:
            raise RecipeError(
                f"model.from_config: text-to-image is built of parts: {{composite: {COMPOSITE}, unet: {{from_config: {{...}}}}, text_encoder: minilm}}."
            )
        else:
            name = resolve(str(model.name))
            found = Model.from_settings(pipeline=name, revision=model.revision, dtype=model.dtype)
        assert isinstance(found, Model)
        times = self.options.times
        found.times = Times(times.density, times.mean, times.deviation, times.least, times.most)
        self._model = found
        found.offset_noise, found.guidance = self.options.offset_noise, self.options.distilled_guidance
        return found

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        assert isinstance(model, Model)
        model.save_pretrained(folder)

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The examples' times, for adapters that differ by them."""
        if self._model is None:
            return {}
        return {"timestep": self._model.drawn_times(batch["draws"]).to(batch["draws"].device)}

    def reduce(self, logits: Any, labels: Any) -> Tensor:
        """Each example's squared error [B]."""
        said, target = logits[:2]
        return (said.float() - target.float()).square().flatten(1).mean(1)

    def metrics(self, result: Any) -> dict[str, float]:
        return {}

    # -- pictures ------------------------------------------------------------------------------------------------------

    def making(self, text: str, seed: int) -> Making:
        """How this task makes the picture of a text."""
        o = self.options
        return Making(text, seed, o.negative, o.steps, o.guidance, o.sampler, o.resolution, o.resolution)

    def inputs(self, rows: Any) -> list[Any] | None:
        return list(rows["text"]) if "text" in rows.column_names else [self.options.prompt] * len(rows)

    def truths(self, rows: Any) -> list[Any] | None:
        return [None] * len(rows)

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """A picture of each text: {"image", "text", "seed", "steps", ...}, seeds from the task's on."""
        asked = [self.making(str(text), self.options.seed + number) for number, text in enumerate(inputs)]
        pictures = made(model, asked, batch_size)
        return [{"image": picture, **told(one)} for picture, one in zip(pictures, asked, strict=True)]

    def sketch(self, model: nn.Module, processor: Any) -> Any | None:
        texts = self.options.samples
        if not texts:
            return None
        return grid([one["image"] for one in self.predict(model, processor, texts)], min(len(texts), 8))

    def judge(self, split: Any, predictions: list[Any]) -> dict[str, float]:
        rows = split.rows
        columns = {name: list(rows[name]) for name in rows.column_names if name not in PICTURES}
        asked = Asked([one["text"] for one in predictions], columns, self._references)
        pictures, found = [one["image"] for one in predictions], dict[str, float]()
        for named in self.options.scores:
            score = get_score(named)
            found |= score.score(pictures, asked)
            for one, right in zip(predictions, score.right(pictures, asked), strict=True):
                one.update({} if right is None else {"right": right})
        return found

    def shown(self, one: Any, prediction: Any) -> Shown:
        picture = prediction["image"]
        return Shown("", str(one), made={"image": grid([picture], 1)})


def _priors(split: Split) -> list[bool]:
    """Which rows are the class's."""
    if "prior" not in split.rows.column_names:
        return [False] * len(split)
    return [bool(one) for one in split.rows["prior"]]


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Items of `TrainingPictures` as the model takes them, class pictures behind the others."""
    items = [*rows, *(row["other"] for row in rows if "other" in row)]
    numbers = {"draws": "draw", "examples": "example", "sizes": "size"}
    return {
        "pixel_values": to_pixels([item["picture"] for item in items]),
        "texts": [item["text"] for item in items],
        "prior": torch.tensor([item["prior"] for item in items]),
        **{name: torch.tensor([item[key] for item in items]) for name, key in numbers.items()},
    }
