"""The options of face recognition."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adaptome.tasks.base import TaskOptions
from adaptome.tasks.face_reading import Measure


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
    sample: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the people that a training batch is compared to (Partial FC)",
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
