"""Pictures as rows of whole numbers: by a trained VQGAN of diffusers, or by cells of few colours, which needs no weights.

encode  [B, 3, H, W] in [-1, 1] -> codes [B, N]        decode  codes -> pictures, N = rows x columns
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError


class CellSettings(BaseModel):
    """Cells of few colours."""

    model_config = ConfigDict(extra="forbid")

    cells: int = Field(default=16, ge=1, description="to a side")
    levels: int = Field(
        default=4, ge=2, description="of each of red, green and blue; there are levels^3 codes"
    )
    size: int = Field(default=4, ge=1, description="pixels to a cell's side")


class CellCodes(nn.Module):
    """Each cell's mean colour, brought to the nearest of levels^3."""

    def __init__(self, settings: CellSettings):
        super().__init__()
        self.cells, self.levels, self.size = settings.cells, settings.levels, settings.size

    @property
    def count(self) -> int:
        """Codes that there are."""
        return self.levels**3

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.cells**2

    @property
    def side(self) -> int:
        """The pictures' side in pixels."""
        return self.cells * self.size

    def encode(self, pixels: Tensor) -> Tensor:
        means = nn.functional.adaptive_avg_pool2d(pixels.float(), self.cells)
        steps = ((means + 1) / 2 * (self.levels - 1)).round().long().clamp(0, self.levels - 1)
        red, green, blue = steps.unbind(1)
        return ((red * self.levels + green) * self.levels + blue).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        grid = codes.view(-1, self.cells, self.cells)
        parts = [grid // self.levels**2, grid // self.levels % self.levels, grid % self.levels]
        values = torch.stack(parts, 1).float() / (self.levels - 1) * 2 - 1
        return values.repeat_interleave(self.size, 2).repeat_interleave(self.size, 3)


class VqCodes(nn.Module):
    """A VQGAN (`diffusers.VQModel`), frozen."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        config = model.config
        self.shrinks = 2 ** (len(config.block_out_channels) - 1)
        self.side = int(config.sample_size)
        self.count, self.length = int(config.num_vq_embeddings), (self.side // self.shrinks) ** 2

    def encode(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.model.encode(pixels.to(next(self.model.parameters()).dtype)).latents
            indices = self.model.quantize(hidden)[2][2]
        return indices.view(len(pixels), -1)

    def decode(self, codes: Tensor) -> Tensor:
        side = self.side // self.shrinks
        width = self.model.quantize.vq_embed_dim
        with torch.no_grad():
            entries = self.model.quantize.get_codebook_entry(codes.flatten(), (len(codes), side, side, width))
            found: Tensor = self.model.decode(entries, force_not_quantize=True).sample
        return found


def load_vq(name: str) -> VqCodes:
    """The VQGAN in a folder or on the hub; safetensors alone.

    Raises:
        ModelError: it cannot be had.
    """
    from adaptome.models.pipelines import diffusers

    try:
        return VqCodes(diffusers().VQModel.from_pretrained(name, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.pictures: {name} holds no VQModel of diffusers in safetensors: {error}") from error  # fmt: skip
