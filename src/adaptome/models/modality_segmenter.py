r"""modality-segmenter: an encoder for each modality, their maps fused stage by stage, one decoder.

    maps_m = stages(encoder_m, x_m),   f_s = fusion_s(maps_1s, ..., maps_Ms),   o = decoder(f_1, ..., f_S),   L = CE(o, y)

shapes    x_m [batch, 3, h, w], o [batch, K, h, w], y [batch, h, w], 255 where it is not known
absent    a modality that is not given is zeros; its encoder runs on them, for the fusion expects what it makes of nothing (biases,
          positions). The bank of a set of modalities is a method's: see `missing-modality`
norms     batch norms that do not train keep their statistics (see `models.modalities.keep_statistics`)
source    the shape of CMNeXt and MMSFormer, in which Reza et al. 2023, arXiv:2310.03986, adapt for missing modalities: SegFormer
          encoders (MiT), the fusion of `models.map_fusion`, SegFormer's decoder
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from typing_extensions import Self

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.decoders import DECODERS
from adaptome.models.dense_losses import hard_pixel_loss, pixel_loss
from adaptome.models.encoders import (
    feature_maps,
    is_hierarchical,
    load_dense_encoder,
    map_widths,
    smallest,
    stride,
)
from adaptome.models.map_fusion import MapFusion
from adaptome.models.modalities import check_given, check_names, keep_statistics
from adaptome.models.windows import padded


class ModalitySegmenterSettings(CompositeSettings):
    encoders: dict[str, Part] = Field(
        description="modality -> its encoder, with a map a stage: SegFormer (nvidia/mit-b2), Swin, SAM2's trunk"
    )
    decoder: Literal["mlp", "fpn"] = Field(default="mlp", description="mlp is SegFormer's")
    width: int = Field(default=256, ge=1, description="channels of the decoder")
    loss: Literal["all", "hard"] = Field(
        default="all", description="cross-entropy of all known pixels, or of those that are told badly (OHEM)"
    )
    labels: int = Field(default=2, ge=2, description="classes of a pixel; the task knows it")

    @field_validator("encoders")
    @classmethod
    def _named(cls, encoders: dict[str, Part]) -> dict[str, Part]:
        check_names(list(encoders))
        return encoders


@register_model("modality-segmenter")
class ModalitySegmenter(CompositeModel):
    """Says of every pixel what is there, by pictures of several kinds."""

    Settings = ModalitySegmenterSettings
    loaders: ClassVar = {"encoders": load_dense_encoder}
    encoders: nn.ModuleDict

    def build(self) -> None:
        own, names = self.settings, list(self.encoders)
        widths = {name: map_widths(self.encoders[name]) for name in names}
        for name in names:
            if not is_hierarchical(self.encoders[name]):
                raise ModelError(
                    f"model.encoders.{name}: {type(self.encoders[name]).__name__} has no stages. Take SegFormer, Swin or SAM2."
                )
            if len(widths[name]) != len(widths[names[0]]):
                raise ModelError(
                    f"model.encoders: {names[0]} has {len(widths[names[0]])} stages and {name} {len(widths[name])}; they are fused one by one."
                )
        first = widths[names[0]]
        self.fusion = nn.ModuleList(MapFusion([widths[n][s] for n in names]) for s in range(len(first)))
        self.decoder = DECODERS[own.decoder](first, own.width, own.labels)

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        keep_statistics(self)
        return self

    def fused(self, pixels: Mapping[str, Tensor]) -> list[Tensor]:
        """A map [batch, C, h, w] of each stage, of the pictures of all modalities or of some."""
        check_given(pixels, self.modalities)
        like = next(iter(pixels.values()))
        maps = []
        for name, encoder in self.encoders.items():
            one = pixels[name] if name in pixels else torch.zeros_like(like)
            maps.append(feature_maps(encoder, one))
        return [fusion([own[stage] for own in maps]) for stage, fusion in enumerate(self.fusion)]

    def forward(self, pixels: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits`; with labels `loss`, first."""
        encoders = list(self.encoders.values())
        multiple, least = max(map(stride, encoders)), max(map(smallest, encoders))
        height, width = next(iter(pixels.values())).shape[-2:]
        whole = {name: padded(one, multiple, least) for name, one in pixels.items()}
        size = next(iter(whole.values())).shape[-2:]
        logits = self.decoder(self.fused(whole), size)[..., :height, :width]
        if labels is None:
            return {"logits": logits}
        loss = hard_pixel_loss if self.settings.loss == "hard" else pixel_loss
        return {"loss": loss(logits, labels), "logits": logits}
