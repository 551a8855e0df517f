"""Pictures made of texts by conditions: a ControlNet on a diffusion transformer, one for many kinds of conditions, each named by an instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.conditions import Annotator, get_condition
from adaptome.data.pictures import TrainingPictures, Treatment, fitted
from adaptome.data.splits import Splits
from adaptome.models.text_to_image import TextToImage as Model
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, TaskOptions, register_task
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.image_generation import grid, made, to_pixels, told
from adaptome.tasks.picture_scores.control import ControlScore
from adaptome.tasks.text_to_image import TextToImage, TextToImageOptions, collate

#: bytes of conditions that are kept, so that an annotator reads a picture once
KEPT = 2**29


class FeatureOptions(BaseModel):
    """A frozen encoder of conditions, whose features the objective `representation-alignment` reads from the batch."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    encoder: str = Field(
        description="hub id or folder: a vision model of transformers, e.g. facebook/dinov2-base"
    )
    side: int = Field(default=448, ge=1, description="pixels to which conditions are brought for it; 32 patches of 14 at 448")  # fmt: skip


class ControlledGenerationOptions(TextToImageOptions):
    conditions: list[str | dict[str, Any]] = Field(
        default=["canny"],
        min_length=1,
        description="kinds, of which each example has one: canny, blur, {name: depth, model: ...}, ...",
    )
    control: int = Field(default=13, ge=1, description="blocks of the denoiser that the ControlNet copies")
    features: FeatureOptions | None = Field(default=None, description="a frozen encoder of conditions, for representation-alignment")  # fmt: skip
    control_scores: bool = Field(
        default=True, description="make pictures by the conditions of a split and take these again from them (SSIM, squared error)"
    )  # fmt: skip
    lpips: bool = Field(default=False, description="score LPIPS too (needs torchvision's networks)")
    clip: str | None = Field(default=None, description="score CLIP-I too, by this model: pictures made against their own")  # fmt: skip
    score_rows: int = Field(default=64, ge=1, description="rows of a split that pictures are made for")


class ControlledPictures(TrainingPictures):
    """Items with a condition (RGB bytes [h, w, 3]) and its instruction beside the picture; which one follows from epoch and place."""

    def __init__(self, annotators: Sequence[Annotator], *args: Any):
        super().__init__(*args)
        self.annotators, self._kept, self._size = list(annotators), dict[tuple[int, int], np.ndarray](), 0

    def _item(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        item = super()._item(row, rng)
        which = int(rng.integers(len(self.annotators)))
        annotator = self.annotators[which]
        return {**item, "condition": self._of(which, item, row), "instruction": annotator.instruction}

    def _of(self, which: int, item: Mapping[str, Any], row: int) -> np.ndarray:
        from PIL import Image

        annotator = self.annotators[which]
        # what is taken from a picture is known by its look; a ready map is of its row, for a picture may have several
        key = (which, item["example"] if annotator.annotates else row)
        if key in self._kept:
            return self._kept[key]
        if annotator.annotates:
            found = annotator(Image.fromarray(np.ascontiguousarray(item["picture"])))
        else:
            high, wide = item["picture"].shape[:2]
            found, _ = fitted(to_rgb(self.rows[row]["condition"]), (wide, high), self.how.crop, np.random.default_rng(0))  # fmt: skip
        array = np.asarray(found)
        if item["example"] != -1 and self._size + array.nbytes <= KEPT:
            self._kept[key], self._size = array, self._size + array.nbytes
        return array


@register_task("controlled-generation")
class ControlledGeneration(TextToImage):
    """Columns: image and text; for the condition `map` also condition, a picture. A gate is told the instruction (`ad.steer`).

    A split that is scored has pictures made by its own pictures' conditions, row by row one kind after another; the condition is then taken
    again from what was made. `predict` takes {"text", "condition" (a PIL picture), "instruction"}, or a text alone for the model uncontrolled.
    """

    Options: ClassVar[type[TaskOptions]] = ControlledGenerationOptions
    options: Any
    later_options = (*TextToImage.later_options, "control_scores", "lpips", "clip", "score_rows")

    def __init__(self, options: Any, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self.annotators = [get_condition(told) for told in options.conditions]
        self._encoder: Any = None

    @property
    def judges(self) -> bool:  # type: ignore[override]
        return bool(self.options.control_scores or self.options.scores)

    @property
    def headline(self) -> str:
        return "ssim" if self.options.control_scores else super().headline

    # -- data ----------------------------------------------------------------------------------------------------------

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        given = [one.name for one in self.annotators if not one.annotates]
        if given:
            for split in splits.values():
                if "condition" not in split.rows.column_names:
                    raise DataError(
                        f"{split.source}: the condition {given[0]!r} is read from a column `condition`, which is not there.\n"
                        "  Name it in metadata.jsonl: {\"file_name\": ..., \"text\": ..., \"condition\": ...}, or let an annotator make it."
                    )  # fmt: skip
            if self.options.crop == "random" or self.options.mirror:
                raise RecipeError("task.conditions: a ready map does not follow crop=random or mirror=true. Use crop=centre.")  # fmt: skip
        for name, split in splits.items():
            if "image" not in split.rows.column_names:
                raise DataError(f"{split.source}: the {name} rows have no pictures to take conditions from (a column image).")  # fmt: skip
        return replace(super().prepare(splits, processor), aside=("instructions", "features"))

    def pictures(
        self,
        rows: Any,
        texts: Sequence[str],
        how: Treatment,
        others: TrainingPictures | None = None,
        prior: bool = False,
    ) -> TrainingPictures:
        return ControlledPictures(self.annotators, rows, texts, to_rgb, how, others, prior)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        items = [*rows, *(row["other"] for row in rows if "other" in row)]
        batch = collate(rows)
        batch["conditions"] = to_pixels([item["condition"] for item in items])
        batch["instructions"] = [item["instruction"] for item in items]
        if self.options.features is not None:
            batch["features"] = self._features([item["condition"] for item in items])
        return batch

    def _features(self, conditions: Sequence[np.ndarray]) -> Tensor:
        """The frozen encoder's patch features [B, N, d]; what stands before the patches (a class token, registers) is left out."""
        from PIL import Image

        if self._encoder is None:
            from transformers import AutoImageProcessor, AutoModel

            name = self.options.features.encoder
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._encoder = (AutoImageProcessor.from_pretrained(name), AutoModel.from_pretrained(name).eval().to(device))  # fmt: skip
        processor, encoder = self._encoder
        side = self.options.features.side
        pictures = [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in conditions]
        pixels = processor(pictures, return_tensors="pt", do_resize=False, do_center_crop=False)[
            "pixel_values"
        ]
        with torch.no_grad():
            hidden: Tensor = encoder(pixel_values=pixels.to(encoder.device)).last_hidden_state
        patch = encoder.config.patch_size
        return hidden[:, -((side // patch) ** 2) :].float().cpu()

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        found = super().load_model(model, processor)
        assert isinstance(found, Model)
        found.add_control(self.options.control)
        return found

    def head_patterns(self, model: nn.Module) -> list[str]:
        """The zero-initialised layers by which the copies act."""
        return ["control.out"]

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The examples' times, and what a gate reads of their instructions."""
        found = super().facts(batch)
        if self._model is not None:
            found["instruction"] = self._model.instruction(batch["instructions"])
        return found

    # -- pictures ------------------------------------------------------------------------------------------------------

    def by(self, rows: Any) -> list[tuple[str, Any, Annotator]]:
        """Of the rows that are scored: text, condition and annotator; the rows take one kind after another."""
        texts = super().inputs(rows) or []
        found = []
        for row in range(min(len(rows), self.options.score_rows)):
            annotator = self.annotators[row % len(self.annotators)]
            side = (self.options.resolution, self.options.resolution)
            source = rows[row]["image" if annotator.annotates else "condition"]
            picture, _ = fitted(to_rgb(source), side, "centre", np.random.default_rng(0))
            found.append((texts[row], annotator(picture), annotator))
        return found

    def inputs(self, rows: Any) -> list[Any] | None:
        """Of the rows beyond those that are scored the text alone, of which nothing is made."""
        asked = [
            {
                "text": text,
                "condition": condition,
                "instruction": annotator.instruction,
                "kind": annotator.name,
            }
            for text, condition, annotator in self.by(rows)
        ]
        return [*asked, *[None] * (len(rows) - len(asked))]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """A picture of each input: {"image", "text", "seed", ...}; {} of None."""
        kept = [(n, {"text": one} if isinstance(one, str) else one) for n, one in enumerate(inputs) if one is not None]  # fmt: skip
        asked = [self.making(str(one.get("text", "")), self.options.seed + n) for n, one in kept]
        answers: list[Any] = [{} for _ in inputs]
        for controlled in (True, False):
            places = [
                i for i, (_, one) in enumerate(kept) if (one.get("condition") is not None) == controlled
            ]
            by = (
                [[(kept[i][1]["condition"], kept[i][1]["instruction"])] for i in places]
                if controlled
                else None
            )
            pictures = made(model, [asked[i] for i in places], batch_size, by=by)
            for i, picture in zip(places, pictures, strict=True):
                answers[kept[i][0]] = {"image": picture, **told(asked[i])}
        return answers

    def sketch(self, model: nn.Module, processor: Any) -> Any | None:
        """None: the pictures of texts alone say nothing of the control."""
        return None

    def judge(self, split: Any, predictions: list[Any]) -> dict[str, float]:
        count = min(len(split), self.options.score_rows)
        found: dict[str, float] = {}
        if self.options.scores:
            found = super().judge(split.select(range(count)), predictions[:count])
        if self.options.control_scores:
            score = ControlScore(self.options.lpips, self.options.clip)
            size = (self.options.resolution, self.options.resolution)
            own = [fitted(to_rgb(split.rows[i]["image"]), size, "centre", np.random.default_rng(0))[0] for i in range(count)]  # fmt: skip
            found |= score.score([one["image"] for one in predictions[:count]], self.by(split.rows), own)
        return found

    def shown(self, one: Any, prediction: Any) -> Shown:
        if not prediction:
            return Shown("", "no picture was made of this row (task.score_rows)")
        if not isinstance(one, Mapping):
            return super().shown(one, prediction)
        pair = grid([one["condition"], prediction["image"]], 2)
        return Shown("", f"{one['text']} ({one['kind']})", made={"condition and image": pair})
