r"""change-detector: one encoder for the pictures of two times, their features exchanged, one decoder for both.

    A = maps(encoder(a)),   B = maps(encoder(b))                 lists of maps
    A' = [B_0, A_1, B_2, A_3],   B' = [A_0, B_1, A_2, B_3]       `exchange`: the maps that change places, the only place where the times meet
    o_a = decoder(A'),   o_b = decoder(B'),   o = (o_a + o_b) / 2
    L = 1/2 (CE(o_a, y) + CE(o_b, y))                            over the pixels that are known

shapes    a, b [batch, 3, h, w]; o [batch, K, h, w]; y [batch, h, w], 255 where it is not known
window    in evaluation a picture larger than `window` is seen in windows, one every `step` pixels, whose logits are averaged
symmetry  o does not change when the times do
source    PeftCD (Dong et al.), arXiv:2509.09572; its code exchanges the lists that it is given in place, here they stay
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.decoders import DECODERS
from adaptome.models.dense_losses import pixel_loss
from adaptome.models.encoders import (
    default_taps,
    feature_maps,
    is_hierarchical,
    load_dense_encoder,
    map_widths,
    smallest,
    stride,
)
from adaptome.models.windows import padded, tiled


class ChangeDetectorSettings(CompositeSettings):
    encoder: Part = Field(
        description="a plain vision transformer (ViT, DINOv2, DINOv3), Swin, or SAM2, whose trunk is taken"
    )
    decoder: Literal["auto", "aspp", "fpn"] = Field(
        default="auto", description="aspp for maps of one stride, fpn for stages; auto: by the encoder"
    )
    width: int = Field(default=256, ge=1, description="channels of the decoder")
    taps: list[int] | None = Field(
        default=None,
        description="blocks of a plain encoder whose maps are taken, from 0; default: four, evenly",
    )
    exchange: list[int] = Field(
        default=[0, 2], description="maps that change places between the two times; [] for none"
    )
    window: int = Field(default=256, ge=1, description="pixels on a side that are seen at once in evaluation")
    step: int = Field(default=128, ge=1, description="pixels from window to window")
    labels: int = Field(default=2, ge=2, description="classes of a pixel; the task knows it")


@register_model("change-detector")
class ChangeDetector(CompositeModel):
    """Marks what changed between two pictures of one place."""

    Settings = ChangeDetectorSettings
    loaders: ClassVar = {"encoder": load_dense_encoder}
    encoder: nn.Module

    def build(self) -> None:
        own, plain = self.settings, not is_hierarchical(self.encoder)
        widths = map_widths(self.encoder)
        if own.taps is not None and not plain:
            raise ModelError(
                f"model.taps: {type(self.encoder).__name__} gives a map a stage; leave taps out."
            )
        self.taps = (own.taps or default_taps(self.encoder)) if plain else list(range(len(widths)))
        for name, numbers, count in (("taps", self.taps, len(widths)), ("exchange", own.exchange, len(self.taps))):  # fmt: skip
            if wrong := [n for n in numbers if not 0 <= n < count]:
                raise ModelError(f"model.{name} names {wrong[0]}; there are {count}, numbered from 0.")
        if own.step > own.window:
            raise ModelError(f"model.step={own.step} leaves gaps between windows of {own.window} pixels.")
        kind = ("aspp" if plain else "fpn") if own.decoder == "auto" else own.decoder
        self.decoder = DECODERS[kind]([widths[tap] for tap in self.taps], own.width, own.labels)

    def logits(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """o_a and o_b [batch, K, h, w] of the pictures of the two times."""
        size, count = first.shape[-2:], len(first)
        both = padded(torch.cat([first, second]), stride(self.encoder), smallest(self.encoder))
        maps = feature_maps(self.encoder, both, self.taps)
        lists = exchanged([m[:count] for m in maps], [m[count:] for m in maps], self.settings.exchange)
        # one after the other: the statistics of a batch norm are those of one time's maps, as in the authors' code
        a, b = (self.decoder(one, both.shape[-2:])[..., : size[0], : size[1]] for one in lists)
        return a, b

    def forward(
        self, pixel_values: Tensor, after_pixels: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` o, and `logits_before`, `logits_after`, of both times' pictures; with labels `loss`, first."""
        own = self.settings
        if self.training:
            a, b = self.logits(pixel_values, after_pixels)
        else:
            a, b = tiled(self.logits, (pixel_values, after_pixels), own.window, own.step)
        made = {"logits": (a + b) / 2, "logits_before": a, "logits_after": b}
        if labels is None:
            return made
        return {"loss": (pixel_loss(a, labels) + pixel_loss(b, labels)) / 2, **made}


def exchanged(
    first: Sequence[Tensor], second: Sequence[Tensor], which: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Both lists with the maps of these numbers in each other's place; those given stay as they are."""
    a = [second[i] if i in which else one for i, one in enumerate(first)]
    b = [first[i] if i in which else one for i, one in enumerate(second)]
    return a, b
