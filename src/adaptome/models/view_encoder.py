r"""view-encoder: a vision transformer that learns without labels, from views of pictures whose patches are hidden in part.

    without decoder   hidden patches are replaced by a mask token; first [B, V, D], patches [B, V, N, D], local [B, L, D]       (DINOv2, iBOT)
    with decoder      hidden patches are left out, and a small decoder tells their pixels: reconstruction, target and masked     (MAE)

shapes    pixel_values [B, V, C, H, W] global views; masks [B, V, N] of bool, N patches (times groups of bands); local_pixels [B, L, C, h, w]
bands     pictures of many bands, in groups (`spectral`); the patches of these are new
saved     as a base for other tasks the encoder alone, a plain model of transformers
source    Oquab et al. 2023, arXiv:2304.07193; He et al. 2022, arXiv:2111.06377; extended pre-training: ExPLoRA, arXiv:2406.10973
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.encoders import load_encoder, map_widths
from adaptome.models.pixel_decoder import Decoder, PixelDecoder, patches_of
from adaptome.models.spectral import KEY, Bands, group_channels


class ViewEncoderSettings(CompositeSettings):
    encoder: Part = Field(description="a vision transformer with patches: ViT, DINOv2, ViT-MAE")
    decoder: Decoder | None = Field(
        default=None, description="of pixels, for masked-autoencoding; None for views and mask tokens"
    )
    bands: Bands | None = Field(default=None, description="groups of bands, for pictures other than RGB")


class MaskToken(nn.Module):
    """Stands for a patch that is hidden: tokens [B, N, D] and their masks [B, N] -> tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, tokens: Tensor, masks: Tensor) -> Tensor:
        return torch.where(masks.unsqueeze(-1), self.token.to(tokens.dtype), tokens)


@register_model("view-encoder")
class ViewEncoder(CompositeModel):
    """A vision transformer with what training without labels needs."""

    Settings = ViewEncoderSettings
    loaders: ClassVar = {"encoder": load_encoder}
    encoder: nn.Module

    def __init__(self, settings: CompositeSettings, weights: bool = True):
        self._weights = weights
        super().__init__(settings, weights)

    def build(self) -> None:
        own, inner = self.settings, self._inner
        map_widths(self.encoder)
        if not hasattr(inner, "embeddings") or not hasattr(inner.embeddings, "patch_embeddings"):
            raise ModelError(
                f"{type(inner).__name__} hides no patches here. Take a ViT, DINOv2 or ViT-MAE encoder."
            )
        if own.bands is not None and not hasattr(inner.config, KEY):
            group_channels(inner, own.bands)
        config = inner.config
        groups = [len(g) for g in getattr(config, KEY, [range(config.num_channels)])]
        self.groups, self.patch = groups, int(config.patch_size)
        grid = int(config.image_size) // self.patch
        self.mask_token = self.decoder = None
        if own.decoder is not None:
            self.decoder = PixelDecoder(own.decoder, int(config.hidden_size), grid, self.patch, groups)
            if own.decoder.source and self._weights and self.decoder.mask_token.device.type != "meta":
                self.decoder.load_released(own.decoder.source)
        elif getattr(inner.embeddings, "mask_token", None) is None:
            self.mask_token = MaskToken(int(config.hidden_size))

    @property
    def _inner(self) -> Any:
        return self.encoder

    def tokens(self, pixels: Tensor, masks: Tensor | None = None) -> Tensor:
        """The encoder's last tokens [B, 1 + N, D], normed; masks [B, N] of bool say which patches are hidden.

        With a decoder those hidden are left out [B, 1 + n, D]; each picture must have as many.
        """
        inner, hooks = self._inner, []
        if masks is not None:
            if self.decoder is None:
                hooks.append(inner.embeddings.patch_embeddings.register_forward_hook(self._hiding(masks)))
            else:
                hooks.append(inner.embeddings.register_forward_hook(_leaving_out(masks)))
        given = {"interpolate_pos_encoding": True} if self._interpolates else {}
        try:
            made: Tensor = inner(pixel_values=pixels, **given).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return made

    @property
    def _interpolates(self) -> bool:
        return "interpolate_pos_encoding" in inspect.signature(type(self._inner).forward).parameters

    def _hiding(self, masks: Tensor) -> Any:
        def hide(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
            if tokens.shape[:2] != masks.shape:
                raise ModelError(
                    f"masks are {list(masks.shape)} and the patches {list(tokens.shape[:2])}: task.image_size and patches do not fit."
                )
            if self.mask_token is not None:
                made: Tensor = self.mask_token(tokens, masks)
                return made
            token = self._inner.embeddings.mask_token.to(tokens.dtype).reshape(1, 1, -1)
            return torch.where(masks.unsqueeze(-1), token, tokens)

        return hide

    def forward(
        self, pixel_values: Tensor, masks: Tensor | None = None, local_pixels: Tensor | None = None
    ) -> dict[str, Any]:
        """See the module's first lines; `embeddings` [B, D] is the first token of the first view."""
        views = pixel_values.shape[:2]
        flat = pixel_values.flatten(0, 1)
        hidden = None if masks is None else masks.flatten(0, 1).to(flat.device)
        if self.decoder is not None and hidden is not None:
            return self._reconstructed(flat, hidden)
        tokens = self.tokens(flat, hidden).unflatten(0, views)
        made = {"first": tokens[:, :, 0], "patches": tokens[:, :, 1:], "embeddings": tokens[:, 0, 0]}
        if local_pixels is not None:
            small = self.tokens(local_pixels.flatten(0, 1))[:, 0]
            made["local"] = small.unflatten(0, local_pixels.shape[:2])
        return made

    def _reconstructed(self, pixels: Tensor, masked: Tensor) -> dict[str, Any]:
        assert self.decoder is not None
        side = int(self._inner.config.image_size)
        if tuple(pixels.shape[-2:]) != (side, side):
            raise ModelError(
                f"the decoder is for pictures of {side} pixels, and these have {list(pixels.shape[-2:])}: give task.image_size={side}."
            )
        said = self.decoder(self.tokens(pixels, masked), masked)
        members = getattr(self._inner.config, KEY, [list(range(pixels.shape[1]))])
        target = [patches_of(pixels[:, group], self.patch) for group in members]
        parts = list(masked.unflatten(1, (len(members), -1)).unbind(1))
        if len(members) == 1:
            return {"reconstruction": said[0], "target": target[0], "masked": parts[0]}
        return {"reconstruction": said, "target": target, "masked": parts}


def _leaving_out(masks: Tensor) -> Any:
    counts = (~masks).sum(1)
    if int(counts.min()) != int(counts.max()):
        raise ModelError("with a decoder every picture of a batch must have as many hidden patches.")

    def leave(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
        kept = tokens[:, 1:][~masks].unflatten(0, (len(tokens), -1))
        return torch.cat([tokens[:, :1], kept], 1)

    return leave
