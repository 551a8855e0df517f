r"""The decoder of masked autoencoders: from the tokens that were seen to the pixels of all patches (He et al. 2022, arXiv:2111.06377).

    h = [W x_seen at their places, m at the others] + position (+ group),    o = P_g norm(blocks(h))      o_gn [p p C_g]

shapes    x [B, 1 + n, D] the encoder's tokens that were kept, in order; masked [B, G N] of bool; o a list of [B, N, p p C_g], one a group
names     those of transformers' ViTMAEDecoder, so that the released decoders load
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError


class Decoder(BaseModel):
    """Its sizes, and whose weights it starts with."""

    model_config = ConfigDict(extra="forbid")

    layers: int = Field(default=8, ge=1, description="number of blocks")
    width: int = Field(default=512, ge=4, description="of its tokens; a multiple of 4")
    heads: int = Field(default=16, ge=1, description="of attention")
    mlp: int = Field(default=2048, ge=1, description="width within the blocks")
    source: str | None = Field(
        default=None, description="a ViT-MAE checkpoint whose decoder it starts as; None for random weights"
    )


class PixelDecoder(nn.Module):
    """Tokens that were seen -> pixels of all patches."""

    def __init__(self, own: Decoder, width: int, grid: int, patch: int, groups: Sequence[int]):
        """width: of the encoder; grid: patches on a side; groups: bands of each group."""
        super().__init__()
        from transformers import ViTMAEConfig
        from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer

        if own.width % 4:
            raise ModelError(
                f"model.decoder.width={own.width} is no multiple of 4, which its positions need."
            )
        made: Any = ViTMAEConfig
        config = made(
            hidden_size=own.width,
            num_attention_heads=own.heads,
            intermediate_size=own.mlp,
            attn_implementation="sdpa",
        )
        self.decoder_embed = nn.Linear(width, own.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, own.width))
        self.register_buffer("decoder_pos_embed", waves(own.width, grid))
        self.decoder_layers = nn.ModuleList(ViTMAELayer(config) for _ in range(own.layers))
        self.decoder_norm = nn.LayerNorm(own.width, eps=1e-12)
        self.decoder_pred = nn.ModuleList(nn.Linear(own.width, patch * patch * bands) for bands in groups)
        self.group_embed = nn.Parameter(torch.zeros(len(groups), own.width)) if len(groups) > 1 else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, masked: Tensor) -> list[Tensor]:
        """What it says of every patch, group by group."""
        h = self.decoder_embed(x)
        rest = self.mask_token.to(h.dtype).expand(len(h), masked.shape[1], -1)
        rest = rest.masked_scatter(~masked.unsqueeze(-1), h[:, 1:])
        places = self.get_buffer("decoder_pos_embed").to(h.dtype)
        more = places[:, 1:]
        if self.group_embed is not None:
            more = (places[:, None, 1:] + self.group_embed[None, :, None]).flatten(1, 2)
        h = torch.cat([h[:, :1] + places[:, :1], rest + more], 1)
        for layer in self.decoder_layers:
            h = layer(h)
        h = self.decoder_norm(h)[:, 1:]
        parts = h.unflatten(1, (len(self.decoder_pred), -1)).unbind(1)
        return [pred(part) for pred, part in zip(self.decoder_pred, parts, strict=True)]

    def load_released(self, source: str) -> None:
        """Start as the decoder of a ViT-MAE checkpoint.

        Raises:
            ModelError: the checkpoint cannot be had, or its decoder has another shape.
        """
        from transformers import ViTMAEForPreTraining

        try:
            theirs = ViTMAEForPreTraining.from_pretrained(source).decoder.state_dict()
        except (OSError, ValueError) as error:
            raise ModelError(f"model.decoder.source={source!r} cannot be had: {error}") from error
        mine = self.state_dict()
        fits = {}
        for name, value in theirs.items():
            at = name.replace("decoder_pred.", "decoder_pred.0.")
            if at in mine and mine[at].shape == value.shape:
                fits[at] = value
        # another grid has other positions, other bands other pixels; all else is to be there
        free = ("decoder_pos_embed", "decoder_pred.", "group_embed")
        absent = [name for name in mine if name not in fits and not name.startswith(free)]
        if absent:
            raise ModelError(
                f"model.decoder.source={source!r} does not fit: {absent[0]} is {list(mine[absent[0]].shape)} here, and the checkpoint has "
                f"{list(theirs[absent[0]].shape) if absent[0] in theirs else 'none'}. Give decoder the checkpoint's layers, width and heads."
            )
        self.load_state_dict({**mine, **fits})


def waves(width: int, side: int) -> Tensor:
    """Fixed positions [1, 1 + side^2, width]: sines and cosines of the column, then of the row; 0 for the first token."""
    rates = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width / 4))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64, device="cpu"),) * 2, indexing="ij")
    parts = [f(at.reshape(-1, 1) * rates) for at in (column, row) for f in (torch.sin, torch.cos)]
    made = torch.cat([torch.zeros(1, width, dtype=torch.float64, device="cpu"), torch.cat(parts, 1)])
    return made.float()[None]


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """Pixels [B, C, H, W] as patches [B, N, p p C], band after band within a pixel."""
    b, c, h, w = pixels.shape
    cut = pixels.reshape(b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)
