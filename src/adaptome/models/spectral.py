r"""A vision transformer for pictures of many bands: bands in groups, each with patches of its own (SatMAE, arXiv:2207.08051).

    tokens = [first; patches of group 1; ...; patches of group G],    t_gn = conv_g(bands of g)_n + position_n + group_g

where     conv_g [D, C_g, p, p] are new, group_g [D] starts at 0, positions are those of the encoder, the same in every group
from RGB  the kernel of a band that is red, green or blue is that colour's, of any other the mean of the three; all of a group times 3 / C_g, so
          that its tokens are as large as before; kernels and positions are interpolated where patch and picture have another size
kept      as `channel_groups` in the encoder's configuration: a folder that `save_pretrained` wrote is loaded by `encoders.load_encoder`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError

KEY = "channel_groups"


class Bands(BaseModel):
    """How bands are grouped, and where their patches start."""

    model_config = ConfigDict(extra="forbid")

    groups: list[list[int]] = Field(
        min_length=1, description="numbers of bands, from 0; a band is in one group"
    )
    rgb: list[int] | list[list[int]] = Field(
        default_factory=list,
        description="the bands that are red, green and blue; several triples for several pictures",
    )
    start: str = Field(
        default="rgb", pattern="^(rgb|random)$", description="rgb: from the encoder's own patches"
    )
    image_size: int | None = Field(default=None, ge=1, description="side in pixels, where it changes")
    patch_size: int | None = Field(default=None, ge=1, description="side of a patch, where it changes")

    @model_validator(mode="after")
    def _each_once(self) -> Bands:
        named = [band for group in self.groups for band in group]
        if sorted(named) != list(range(len(named))):
            raise ValueError(
                f"groups must name each band from 0 to {len(named) - 1} once, and name {sorted(named)}"
            )
        if any(len(triple) != 3 or not set(triple) <= set(named) for triple in self.triples()):
            raise ValueError("rgb names three bands of the groups: red, green and blue")
        return self

    def triples(self) -> list[list[int]]:
        """The triples of `rgb`."""
        if not self.rgb:
            return []
        return [list(one) for one in self.rgb] if isinstance(self.rgb[0], list) else [list(self.rgb)]

    @property
    def count(self) -> int:
        """Of bands."""
        return sum(len(group) for group in self.groups)


class GroupedPatches(nn.Module):
    """Pixels [B, C, H, W] -> tokens [B, G N, D], group after group."""

    def __init__(self, groups: Sequence[Sequence[int]], width: int, patch: int, side: int):
        super().__init__()
        self.groups, self.patch_size, self.image_size = (
            [list(g) for g in groups],
            (patch, patch),
            (side, side),
        )
        self.num_channels, self.num_patches = sum(map(len, groups)), (side // patch) ** 2
        self.projections = nn.ModuleList(nn.Conv2d(len(g), width, patch, patch) for g in groups)

    @property
    def projection(self) -> nn.Module:
        """The first group's: transformers asks it for its dtype."""
        return self.projections[0]

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        if pixel_values.shape[1] != self.num_channels:
            raise ModelError(
                f"the pictures have {pixel_values.shape[1]} bands and the model's groups {self.num_channels}."
            )
        made = [
            conv(pixel_values[:, group]) for conv, group in zip(self.projections, self.groups, strict=True)
        ]
        return torch.cat([one.flatten(2).transpose(1, 2) for one in made], 1)


class GroupedEmbeddings(nn.Module):
    """The encoder's embeddings with grouped patches; first token and positions stay the encoder's."""

    def __init__(self, own: Any, patches: GroupedPatches, positions: Tensor):
        super().__init__()
        self.cls_token, self.mask_token, self.dropout = own.cls_token, own.mask_token, own.dropout
        self.patch_embeddings, self.patch_size = patches, own.patch_size
        self.position_embeddings = nn.Parameter(positions)
        self.group_embeddings = nn.Parameter(positions.new_zeros(len(patches.groups), positions.shape[-1]))

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Tensor:
        """Tokens [B, 1 + G N, D]."""
        height, width = (side // self.patch_embeddings.patch_size[0] for side in pixel_values.shape[-2:])
        tokens = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            token = self.mask_token.to(tokens.dtype).reshape(1, 1, -1)
            tokens = torch.where(bool_masked_pos.unsqueeze(-1), token, tokens)
        places = resized_positions(self.position_embeddings, height, width)
        more = (places[:, None, 1:] + self.group_embeddings[None, :, None]).flatten(1, 2)
        first = (self.cls_token + places[:, :1]).expand(len(tokens), -1, -1)
        made: Tensor = self.dropout(torch.cat([first, tokens + more], 1))
        return made


def group_channels(encoder: nn.Module, bands: Bands) -> nn.Module:
    """The encoder with grouped patches in place of its own.

    Raises:
        ModelError: the encoder has no patches of a kind that is known, or the sizes do not fit.
    """
    inner: Any = encoder
    config, old = inner.config, inner.embeddings
    if not hasattr(old, "position_embeddings") or getattr(old, "cls_token", None) is None:
        raise ModelError(
            f"{type(encoder).__name__} cannot take groups of bands. Take ViT, DINOv2 or ViT-MAE."
        )
    patch, side = bands.patch_size or int(config.patch_size), bands.image_size or int(config.image_size)
    if side % patch:
        raise ModelError(f"bands: patches of {patch} pixels do not fill pictures of {side}.")
    patches = GroupedPatches(bands.groups, int(config.hidden_size), patch, side)
    kernel = old.patch_embeddings.projection
    patches.to(kernel.weight.device, kernel.weight.dtype)
    if bands.start == "rgb" and kernel.weight.shape[1] == 3:
        _from_rgb(patches, kernel, bands)
    positions = resized_positions(old.position_embeddings.detach(), side // patch, side // patch).clone()
    inner.embeddings = GroupedEmbeddings(old, patches, positions)
    config.num_channels, config.patch_size, config.image_size = bands.count, patch, side
    config.channel_groups = [list(group) for group in bands.groups]
    return encoder


@torch.no_grad()
def _from_rgb(patches: GroupedPatches, kernel: Any, bands: Bands) -> None:
    colour = {band: at for triple in bands.triples() for at, band in enumerate(triple)}
    weight: Tensor = kernel.weight
    size = patches.patch_size
    if tuple(weight.shape[-2:]) != size and weight.device.type != "meta":
        ratio = (
            weight.shape[-1] * weight.shape[-2] / (size[0] * size[1])
        )  # the sum over a patch stays as large
        weight = F.interpolate(weight.float(), size, mode="bicubic", antialias=True).to(weight.dtype) * ratio
    if weight.device.type == "meta":
        return
    for conv, group in zip(patches.projections, bands.groups, strict=True):
        rows = [weight[:, colour[b]] if b in colour else weight.mean(1) for b in group]
        conv.weight.copy_(torch.stack(rows, 1) * (3 / len(group)))  # type: ignore[operator]
        conv.bias.copy_(kernel.bias)  # type: ignore[operator]


def resized_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """Positions [1, 1 + n, D] of a square grid for one of this height and width, interpolated where they differ."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return positions
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    made = F.interpolate(grid.float(), (height, width), mode="bicubic", align_corners=False).to(
        positions.dtype
    )
    return torch.cat([positions[:, :1], made.flatten(2).transpose(1, 2)], 1)
