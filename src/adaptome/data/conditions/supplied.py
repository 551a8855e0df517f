"""Conditions by a model that the recipe names: depth, surface normals and segments, by transformers' auto classes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import Field

from adaptome.core.errors import ModelError
from adaptome.data.conditions.base import Annotator, AnnotatorSettings, register_condition
from adaptome.data.conditions.plain import from_array


class ModelSettings(AnnotatorSettings):
    model: str = Field(description="hub id or folder")


class _ByModel(Annotator):
    Settings = ModelSettings
    loader = ""

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import transformers

        try:
            model = getattr(transformers, self.loader).from_pretrained(self.settings.model)
            return transformers.AutoImageProcessor.from_pretrained(self.settings.model), model.eval()
        except (OSError, ValueError) as error:
            raise ModelError(f"the annotator {self.name}: {self.settings.model} cannot be had: {error}") from error  # fmt: skip

    def outputs(self, picture: Any) -> Any:
        processor, model = self._loaded
        with torch.inference_mode():
            return model(**processor(images=picture, return_tensors="pt"))


class _OfDepth(_ByModel):
    loader = "AutoModelForDepthEstimation"

    def depth(self, picture: Any) -> np.ndarray:
        """[h, w] of the picture's size, 0 to 1 by its own least and most."""
        found = self.outputs(picture).predicted_depth[None].float()
        size = (picture.size[1], picture.size[0])
        values = torch.nn.functional.interpolate(found, size, mode="bicubic")[0, 0].numpy()
        spread = float(np.ptp(values))
        shares: np.ndarray = (values - values.min()) / spread if spread else np.zeros_like(values)
        return shares


@register_condition("depth")
class Depth(_OfDepth):
    """Near is bright, as the model has it."""

    words = "depth map to image"

    def __call__(self, picture: Any) -> Any:
        return from_array((255 * self.depth(picture)).round())


class NormalSettings(ModelSettings):
    steepness: float = Field(default=8.0, gt=0, description="depth over the picture's whole side")


@register_condition("normal")
class Normal(_OfDepth):
    """Surface normals as colours, from the depth's slopes."""

    Settings = NormalSettings
    words = "normal map to image"

    def __call__(self, picture: Any) -> Any:
        depth = self.depth(picture) * self.settings.steepness
        down, right = np.gradient(depth)
        normal = np.stack([-right * depth.shape[1], down * depth.shape[0], np.full_like(depth, self.settings.steepness)], -1)  # fmt: skip
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        return from_array(((normal + 1) * 127.5).round())


@register_condition("segmentation")
class Segmentation(_ByModel):
    """A colour for each class, the same in all pictures."""

    words = "segmentation map to image"
    loader = "AutoModelForSemanticSegmentation"

    def __call__(self, picture: Any) -> Any:
        found = self.outputs(picture).logits.float()
        size = (picture.size[1], picture.size[0])
        classes = torch.nn.functional.interpolate(found, size, mode="bilinear").argmax(1)[0].numpy()
        colours = np.random.default_rng(0).integers(40, 256, (found.shape[1], 3))
        return from_array(colours[classes])
