"""Conditions that need no model and no library beyond Pillow: what is left of a picture without colours, detail, order or parts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydantic import Field

from adaptome.data.conditions.base import Annotator, AnnotatorSettings, register_condition


def from_array(values: np.ndarray) -> Any:
    """A PIL RGB picture of bytes [h, w] or [h, w, 3]."""
    from PIL import Image

    values = np.asarray(values)
    whole = np.repeat(values[..., None], 3, -1) if values.ndim == 2 else values
    return Image.fromarray(np.ascontiguousarray(whole.astype(np.uint8)))


@register_condition("grayscale")
class Grayscale(Annotator):
    """Its brightness."""

    words = "grayscale photo to image"

    def __call__(self, picture: Any) -> Any:
        return picture.convert("L").convert("RGB")


class BlurSettings(AnnotatorSettings):
    radius: float = Field(default=8.0, gt=0, description="of the Gaussian, in pixels")


@register_condition("blur")
class Blur(Annotator):
    """Its large forms."""

    Settings = BlurSettings
    words = "blurred photo to image"

    def __call__(self, picture: Any) -> Any:
        from PIL import ImageFilter

        return picture.filter(ImageFilter.GaussianBlur(self.settings.radius))


class BlockSettings(AnnotatorSettings):
    block: int = Field(default=64, ge=1, description="side of a square in pixels")


class _Blocks(Annotator):
    Settings = BlockSettings

    def __call__(self, picture: Any) -> Any:
        from PIL import Image

        small = tuple(max(-(-side // self.settings.block), 1) for side in picture.size)
        return picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)


@register_condition("palette")
class Palette(_Blocks):
    """Where which colours are: the mean of large squares."""

    words = "color palette to image"


class PixelSettings(BlockSettings):
    block: int = Field(default=8, ge=1, description="side of a square in pixels")


@register_condition("pixel")
class Pixel(_Blocks):
    """Few large pixels."""

    Settings = PixelSettings
    words = "pixelated photo to image"


class JpegSettings(AnnotatorSettings):
    quality: int = Field(default=5, ge=1, le=95, description="of the compression")


@register_condition("jpeg")
class Jpeg(Annotator):
    """What a strong compression leaves."""

    Settings = JpegSettings
    words = "compressed photo to image"

    def __call__(self, picture: Any) -> Any:
        from PIL import Image

        held = io.BytesIO()
        picture.save(held, "JPEG", quality=self.settings.quality)
        return Image.open(io.BytesIO(held.getvalue())).convert("RGB")


class ShuffleSettings(AnnotatorSettings):
    parts: int = Field(default=4, ge=2, description="squares to a side, which change places")
    seed: int = Field(default=0, ge=0, description="of their order, the same for all pictures of a size")


@register_condition("shuffle")
class Shuffle(Annotator):
    """Its squares in another order; what does not divide stays at the edge."""

    Settings = ShuffleSettings
    words = "shuffled photo to image"

    def __call__(self, picture: Any) -> Any:
        values, parts = np.array(picture), self.settings.parts
        high, wide = (side // parts for side in values.shape[:2])
        if not high or not wide:
            return picture.copy()
        cells = [(i * high, j * wide) for i in range(parts) for j in range(parts)]
        order = np.random.default_rng(self.settings.seed).permutation(len(cells))
        made = values.copy()
        for (top, left), n in zip(cells, order, strict=True):
            from_top, from_left = cells[n]
            made[top : top + high, left : left + wide] = values[from_top : from_top + high, from_left : from_left + wide]  # fmt: skip
        return from_array(made)


class HoleSettings(AnnotatorSettings):
    share: float = Field(
        default=0.5, gt=0, lt=1, description="of each side that the hole, or what stays, has"
    )


def _middle(values: np.ndarray, share: float) -> tuple[slice, slice]:
    return tuple(slice(round(n * (1 - share) / 2), round(n * (1 + share) / 2)) for n in values.shape[:2])  # type: ignore[return-value]


@register_condition("inpainting")
class Inpainting(Annotator):
    """All but its middle, which is black."""

    Settings = HoleSettings
    words = "image with a hole to image"

    def __call__(self, picture: Any) -> Any:
        made = np.array(picture)
        made[_middle(made, self.settings.share)] = 0
        return from_array(made)


@register_condition("outpainting")
class Outpainting(Annotator):
    """Its middle alone, on black."""

    Settings = HoleSettings
    words = "middle of an image to image"

    def __call__(self, picture: Any) -> Any:
        values = np.array(picture)
        made, kept = np.zeros_like(values), _middle(values, self.settings.share)
        made[kept] = values[kept]
        return from_array(made)


class BrushSettings(AnnotatorSettings):
    colours: int = Field(default=8, ge=2, le=256, description="to which it is brought")
    size: int = Field(default=5, ge=3, description="of the brush in pixels; odd")


@register_condition("brush")
class Brush(Annotator):
    """Flat strokes of few colours."""

    Settings = BrushSettings
    words = "brush painting to image"

    def __call__(self, picture: Any) -> Any:
        from PIL import Image, ImageFilter

        flat = picture.quantize(self.settings.colours, dither=Image.Dither.NONE).convert("RGB")
        return flat.filter(ImageFilter.ModeFilter(self.settings.size | 1))


@register_condition("map")
class Map(Annotator):
    """None taken: the data has it ready, in the column `condition` (boxes, poses, sketches, what any program made)."""

    words = "map to image"
    annotates = False

    def __call__(self, picture: Any) -> Any:
        return picture
