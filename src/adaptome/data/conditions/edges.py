"""Edges and lines of a picture, by scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from adaptome.core.errors import MissingExtraError
from adaptome.data.conditions.base import Annotator, AnnotatorSettings, register_condition
from adaptome.data.conditions.plain import from_array


def gray(picture: Any) -> np.ndarray:
    """Brightness [h, w] in 0..1."""
    return np.asarray(picture.convert("L"), dtype=np.float64) / 255


def skimage(part: str) -> Any:
    """A module of scikit-image.

    Raises:
        MissingExtraError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"skimage.{part}")
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-image", "control") from None


class EdgeSettings(AnnotatorSettings):
    sigma: float = Field(default=1.4, gt=0, description="of the Gaussian before it, in pixels")


class CannySettings(EdgeSettings):
    low: float = Field(default=0.1, ge=0, le=1, description="edges below are dropped")
    high: float = Field(
        default=0.2, ge=0, le=1, description="edges above are kept; between, where they touch such"
    )


@register_condition("canny")
class Canny(Annotator):
    """White edges on black (Canny 1986)."""

    Settings = CannySettings
    words = "canny edges to image"

    def __call__(self, picture: Any) -> Any:
        s = self.settings
        found = skimage("feature").canny(gray(picture), s.sigma, s.low, s.high, mode="nearest")
        return from_array(found * 255)


class LineSettings(EdgeSettings):
    strength: float = Field(default=6.0, gt=0, description="of the lines")


@register_condition("lineart")
class Lineart(Annotator):
    """Dark lines on white: where the picture is darker than what surrounds it (a difference of Gaussians)."""

    Settings = LineSettings
    words = "line art to image"

    def __call__(self, picture: Any) -> Any:
        s, filters = self.settings, skimage("filters")
        values = gray(picture)
        lines = filters.gaussian(values, 2 * s.sigma, mode="nearest") - filters.gaussian(values, s.sigma / 2, mode="nearest")  # fmt: skip
        return from_array(255 * (1 - np.clip(s.strength * lines, 0, 1)))


@register_condition("sketch")
class Sketch(Annotator):
    """Soft dark edges on white (Sobel's), as of a pencil."""

    Settings = LineSettings
    words = "sketch to image"

    def __call__(self, picture: Any) -> Any:
        s, filters = self.settings, skimage("filters")
        found = filters.sobel(filters.gaussian(gray(picture), s.sigma / 2, mode="nearest"), mode="nearest")
        return from_array(255 * (1 - np.clip(s.strength * found / 2, 0, 1)))
