"""dual-encoder: a model with an encoder for pictures and one for texts (CLIP, SigLIP), giving what `lvlm-embedder` gives.

    f_v = image projection of the picture,  f_t = text projection of the text;  similarity is their cosine

shapes    pixel_values [batch, 3, h, w]; text_ids [batch, C, T]; f [batch, d]
source    Radford et al. 2021, arXiv:2103.00020
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model


class DualEncoderSettings(CompositeSettings):
    encoders: Part = Field(
        description="a model of transformers with get_image_features and get_text_features"
    )


@register_model("dual-encoder")
class DualEncoder(CompositeModel):
    """Gives pictures and texts vectors by an encoder of each."""

    Settings = DualEncoderSettings
    loaders: ClassVar = {"encoders": "AutoModel"}
    encoders: nn.Module

    def build(self) -> None:
        if not all(hasattr(self.encoders, name) for name in ("get_image_features", "get_text_features")):
            raise ModelError(
                f"model.encoders: {type(self.encoders).__name__} has no encoder for pictures beside one for texts; CLIP and SigLIP have."
            )

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """f_t [batch, d] of texts [batch, T]."""
        return _pooled(self.encoders.get_text_features(input_ids=ids, attention_mask=mask))  # type: ignore[operator]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`image_embeds` [batch, d], `candidates` [batch, C, d] and `text_embeds` [batch, d], the first of them; each side may be left out."""
        made: dict[str, Tensor] = {}
        if pixel_values is not None:
            made["image_embeds"] = _pooled(self.encoders.get_image_features(pixel_values=pixel_values))  # type: ignore[operator]
        if text_ids is not None:
            assert text_mask is not None
            found = self.texts(text_ids.flatten(0, 1), text_mask.flatten(0, 1))
            made["candidates"] = found.unflatten(0, text_ids.shape[:2])
            made["text_embeds"] = made["candidates"][:, 0]
        return made


def _pooled(made: Any) -> Tensor:
    """The projected vectors: transformers 5 gives them within an output, earlier ones by themselves."""
    found: Tensor = made if isinstance(made, torch.Tensor) else made.pooler_output
    return found
