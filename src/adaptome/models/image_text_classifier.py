r"""image-text-classifier: a label for an image with a text, by one encoder of both or by an encoder of each.

    joint     f = pooled(joint(image, text))                                                  ViLT
    two       f = mean(blocks([P_i image tokens + e_i; P_t text tokens + e_t]))               a vision and a text encoder
    o = W_2 gelu(norm(W_1 f))

shapes    pixels [batch, 3, h, w], input_ids and attention_mask [batch, n] -> o [batch, K]; P of each encoder's width to d, e a vector of each modality
absent    a missing image is pixels of a constant, a missing text the tokens of the empty one: the caller's to fill
loss      cross-entropy; of several labels a row, labels [batch, K] of 0 and 1, the binary one
source    ViLT (Kim et al. 2021, arXiv:2102.03334), the base of Reza et al. 2023, arXiv:2310.03986, on UPMC Food-101; the head is ViLT's for VQA
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.models.attention_blocks import Block
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.encoders import load_encoder


class ImageTextClassifierSettings(CompositeSettings):
    joint: Part | None = Field(default=None, description="ViLT (dandelin/vilt-b32-mlm)")
    image: Part | None = Field(default=None, description="a vision transformer, beside text")
    text: Part | None = Field(default=None, description="a text encoder, beside image")
    width: int = Field(default=256, ge=1, description="of the tokens of both, d")
    layers: int = Field(default=2, ge=1, description="blocks over the tokens of both")
    heads: int = Field(default=4, ge=1)
    labels: int = Field(default=2, ge=2, description="the task knows it")


@register_model("image-text-classifier")
class ImageTextClassifier(CompositeModel):
    """A classifier of images with texts."""

    Settings = ImageTextClassifierSettings
    loaders: ClassVar = {"joint": "AutoModel", "image": load_encoder, "text": "AutoModel"}

    def build(self) -> None:
        own = self.settings
        if (own.joint is None) == (own.image is None or own.text is None) or (own.joint and own.image):
            raise ModelError("image-text-classifier: give joint (ViLT), or image and text.")
        width = own.width
        if own.joint is not None:
            config: Any = self.joint.config  # type: ignore[union-attr]
            if config.model_type != "vilt":
                raise ModelError(
                    f"model.joint: {config.model_type} is no ViLT. Give image and text: two encoders."
                )
            width = int(config.hidden_size)
        else:
            if getattr(self.text, "pooler", None) is not None:
                self.text.pooler = None  # type: ignore[union-attr]  # not in the path, so no gradient would reach it
            self.projections = nn.ModuleDict({n: nn.Linear(_width(getattr(self, n)), width) for n in ("image", "text")})  # fmt: skip
            self.kinds = nn.Embedding(2, width)
            self.fusion = nn.ModuleList(Block(width, own.heads) for _ in range(own.layers))
            self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, own.labels))  # fmt: skip

    def features(self, pixels: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """f [batch, width]."""
        if self.settings.joint is not None:
            pooled: Tensor = self.joint(pixel_values=pixels, **tokens).pooler_output  # type: ignore[operator]
            return pooled
        encoders: Any = {"image": self.image, "text": self.text}
        seen = [encoders["image"](pixel_values=pixels), encoders["text"](**tokens)]
        both = [
            project(one.last_hidden_state) + self.kinds.weight[kind]
            for kind, (project, one) in enumerate(zip(self.projections.values(), seen, strict=True))
        ]
        there = torch.cat([torch.ones(both[0].shape[:2]).to(tokens["attention_mask"]), tokens["attention_mask"]], 1).bool()  # fmt: skip
        h = torch.cat(both, 1)
        for block in self.fusion:
            h = block(h, mask=there)
        h = self.norm(h) * there[..., None]
        return h.sum(1) / there.sum(1, keepdim=True)

    def forward(
        self, pixels: Tensor, tokens: Mapping[str, Tensor], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` [batch, labels]; with labels `loss`, first."""
        logits = self.head(self.features(pixels, tokens))
        if labels is None:
            return {"logits": logits}
        one = labels.dim() == 1
        loss = F.cross_entropy(logits, labels) if one else F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))  # fmt: skip
        return {"loss": loss, "logits": logits}


def _width(encoder: Any) -> int:
    return int(encoder.config.hidden_size)
