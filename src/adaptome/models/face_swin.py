r"""face-swin: the Swin Transformer of PETALface's recogniser: queries, keys and values in one map, windows of 5, no mask between shifted ones.

    x = LN(patches W_p + b_p) + P                   [batch, n, d]
    x = x + attention(LN(x)),  x = x + MLP(LN(x))   in windows of w x w tokens, which every second block shifts by w // 2
    attention = softmax(q k^T / sqrt(d_h) + B) v    q, k, v = x W_qkv + b
    next stage: LN([x_00, x_10, x_01, x_11]) W_r    half the side, twice the width

shapes    the paper's: pictures of 120 x 120, patches of 6, widths 384, 768, 1536, depths 2, 18, 2, windows of 5: 25 tokens of 1536
mask      the released weights were trained without the mask that keeps a shifted window's two sides apart: `shift_mask: false`, the default here
source    Narayan et al. 2024, arXiv:2412.07771, and its released weights, whose names of tensors these are; Liu et al. 2021, arXiv:2103.14030
"""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

KIND: Literal["face-swin"] = "face-swin"


class FaceSwinConfig(BaseModel):
    """What builds it; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    model_type: Literal["face-swin"] = KIND
    image_size: int = Field(default=120, ge=1, description="side of the pictures in pixels")
    patch_size: int = Field(default=6, ge=1, description="side of a patch in pixels")
    embed_dim: int = Field(
        default=384, ge=1, description="width of the first stage; each next has twice the one before"
    )
    depths: list[int] = Field(default=[2, 18, 2], min_length=1, description="blocks of each stage")
    num_heads: list[int] = Field(default=[8, 16, 16], description="attention heads of each stage's blocks")
    window_size: int = Field(default=5, ge=1, description="side of a window in tokens")
    mlp_ratio: float = Field(default=4.0, gt=0, description="width of the MLPs, of the stage's")
    drop_path_rate: float = Field(default=0.05, ge=0, lt=1, description="of the last block; the first has 0")
    shift_mask: bool = Field(
        default=False, description="keep the two sides of a shifted window apart, as Swin does"
    )

    @model_validator(mode="after")
    def _fits(self) -> FaceSwinConfig:
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths has {len(self.depths)} stages, num_heads {len(self.num_heads)}")
        side = self.image_size // self.patch_size
        for stage, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"stage {stage}: {heads} heads do not divide the width {self.embed_dim * 2**stage}"
                )
            if side % min(side, self.window_size) or (stage + 1 < len(self.depths) and side % 2):
                raise ValueError(
                    f"stage {stage} has {side} x {side} tokens, which windows of {self.window_size} or the merging of 2 x 2 do not divide; "
                    "choose another image_size, patch_size or window_size"
                )
            side //= 2
        return self

    @property
    def hidden_size(self) -> int:
        """Width of the last stage."""
        return int(self.embed_dim * 2 ** (len(self.depths) - 1))

    def to_json_string(self, use_diff: bool = True) -> str:
        """As a composite model's folder keeps it."""
        return json.dumps(self.model_dump(mode="json"))


class FaceSwin(nn.Module):
    """Pixels [batch, 3, side, side] -> tokens of the last stage, behind a norm, as `last_hidden_state` [batch, n, width]."""

    def __init__(self, config: FaceSwinConfig):
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size), "norm": nn.LayerNorm(config.embed_dim)}
        )  # fmt: skip
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, side**2, config.embed_dim))
        drops = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        stages = []
        for stage, depth in enumerate(config.depths):
            last = stage + 1 == len(config.depths)
            own = drops[sum(config.depths[:stage]) :][:depth]
            stages.append(Stage(config, stage, side // 2**stage, own, last))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(config.hidden_size)
        self._draw()

    def _draw(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Attention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward(self, pixel_values: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        x = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = self.patch_embed["norm"](x) + self.absolute_pos_embed
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class Stage(nn.Module):
    """Blocks at one width, and the merging that leads to the next."""

    def __init__(self, config: FaceSwinConfig, stage: int, side: int, drops: list[float], last: bool):
        super().__init__()
        width, window = config.embed_dim * 2**stage, min(side, config.window_size)
        # a window as large as the map is not shifted
        shifts = [0 if i % 2 == 0 or side <= config.window_size else window // 2 for i in range(len(drops))]
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads[stage], side, window, shift, int(width * config.mlp_ratio), drop, config.shift_mask)
            for shift, drop in zip(shifts, drops, strict=True)
        )  # fmt: skip
        self.downsample = None if last else Merging(width, side)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Attention in windows, and an MLP, each beside the tokens as they were."""

    def __init__(
        self,
        width: int,
        heads: int,
        side: int,
        window: int,
        shift: int,
        inner: int,
        drop: float,
        masked: bool,
    ):
        super().__init__()
        self.side, self.window, self.shift, self.drop = side, window, shift, drop
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, window)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        mask = sides_apart(side, window, shift) if shift and masked else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        own = self.norm1(x).view(batch, self.side, self.side, width)
        own = own.roll((-self.shift, -self.shift), (1, 2)) if self.shift else own
        rows = self.attn(windows_of(own, self.window), self.attn_mask)
        own = whole_of(rows, self.side, self.window)
        own = own.roll((self.shift, self.shift), (1, 2)) if self.shift else own
        x = x + dropped(own.reshape(batch, count, width), self.drop, self.training)
        own = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + dropped(own, self.drop, self.training)


class Attention(nn.Module):
    """Among the tokens of each window [rows, w w, width], with a bias for every offset of two tokens."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer(
            "relative_position_index", apart[0] * (2 * window - 1) + apart[1], persistent=False
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows, count, width = x.shape
        q, k, v = self.qkv(x).view(rows, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(count, count, self.heads).permute(2, 0, 1)[None]
        if mask is not None:  # [windows, n, n], the same for every picture
            bias = bias + mask.repeat(rows // len(mask), 1, 1)[:, None]
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(made.transpose(1, 2).reshape(rows, count, width))


class Merging(nn.Module):
    """Four neighbouring tokens into one of twice the width."""

    def __init__(self, width: int, side: int):
        super().__init__()
        self.side = side
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), self.side, self.side, -1)
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1).flatten(1, 2)))


def windows_of(x: Tensor, window: int) -> Tensor:
    """[batch, side, side, width] -> [batch windows, w w, width], a picture's windows after one another."""
    batch, side, _, width = x.shape
    cut = x.view(batch, side // window, window, side // window, window, width)
    return cut.transpose(2, 3).reshape(-1, window**2, width)


def whole_of(rows: Tensor, side: int, window: int) -> Tensor:
    """Undoes `windows_of`."""
    cut = rows.view(-1, side // window, side // window, window, window, rows.shape[-1])
    return cut.transpose(2, 3).reshape(len(cut), side, side, -1)


def sides_apart(side: int, window: int, shift: int) -> Tensor:
    """0 for tokens of a shifted window that are neighbours in the picture, -100 for others [windows, n, n]."""
    at = torch.arange(side)
    part = (at >= side - window).long() + (at >= side - shift).long()
    kinds = windows_of((part[:, None] * 3 + part[None])[None, ..., None].float(), window)[..., 0]
    return (kinds[:, None] != kinds[:, :, None]) * -100.0


def dropped(x: Tensor, share: float, training: bool) -> Tensor:
    """Zero for a share of the pictures, the others scaled up for it."""
    if not (share and training):
        return x
    kept = torch.rand(len(x), 1, 1, device=x.device) >= share
    return x * (kept.to(x.dtype) / (1 - share))
