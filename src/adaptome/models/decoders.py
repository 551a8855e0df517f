"""Decoders: from an encoder's feature maps to a map of logits at the picture's size.

    aspp    maps of one stride (plain vision transformers): weighed by layer at each pixel, then seen at four dilations (PeftCD's for DINOv3)
    fpn     maps that halve from stage to stage: a feature pyramid, then residual blocks from the smallest to the largest (PeftCD's for SAM2)
    hrnet   each stage's map to a few channels, all at the largest one's size, two maps of one pixel (MTLoRA's)
    mlp     each stage's map to one width, all at the largest one's size, two maps of one pixel (SegFormer's, in Polyhistor)

source      PeftCD, arXiv:2509.09572, and its authors' code, of whose first decoder the branch that they never use is left out; MTLoRA,
            arXiv:2403.20320; Polyhistor, arXiv:2210.03265
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.models.windows import doubled, resized, stacked


class Separable(nn.Sequential):
    """3 x 3 depth-wise, BN, GELU, 1 x 1, BN, GELU; no biases."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
        )


def mixed(fan_in: int, width: int) -> nn.Sequential:
    """1 x 1 without bias, BN, GELU."""
    return nn.Sequential(nn.Conv2d(fan_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.GELU())


class AsppDecoder(nn.Module):
    """Of maps at one stride; about twice their size four times over.

        w_l = softmax_l sigmoid(score_l(m_l)),  m = sum_l w_l m_l         at each pixel; the sigmoid keeps the weights within e : 1

    Args:
        widths: channels of the maps. width: of the decoder. outputs: channels of the result.
    """

    DILATIONS = (1, 2, 4, 8)

    def __init__(self, widths: Sequence[int], width: int, outputs: int):
        super().__init__()
        self.reduce = nn.ModuleList(mixed(each, width) for each in widths)
        self.score = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in widths)
        self.fused = Separable(width)
        self.scales = nn.ModuleList(Separable(width, dilation) for dilation in self.DILATIONS)
        self.joined = mixed(width * len(self.DILATIONS), width)
        self.up = nn.ModuleList(Separable(width) for _ in range(2))
        self.smooth = Separable(width)
        self.head = nn.Sequential(Separable(width), nn.Conv2d(width, outputs, 1))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits [batch, outputs, *size] of maps [batch, channels, h, w]."""
        reduced = [reduce(one) for reduce, one in zip(self.reduce, maps, strict=True)]
        scores = torch.stack([s(one).sigmoid() for s, one in zip(self.score, reduced, strict=True)])
        x = (torch.stack(reduced) * scores.softmax(0)).sum(0)
        x = self.fused(x)
        x = self.joined(torch.cat([scale(x) for scale in self.scales], 1))
        for block in self.up:
            x = block(doubled(x))
        x = self.smooth(x)
        while x.shape[-2] * 2 <= size[0] and x.shape[-1] * 2 <= size[1]:
            x = doubled(x)
        made: Tensor = self.head(resized(x, size))
        return made


class Residual(nn.Module):
    """Two bottlenecks 1 x 1, 3 x 3, 1 x 1 of one width, the ReLU behind the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.blocks = nn.ModuleList(_bottleneck(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.relu(x + block(x))
        return x


def _bottleneck(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, kernel in enumerate((1, 3, 1)):
        layers += [
            nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            *([nn.ReLU()] if number < 2 else []),
        ]
    return nn.Sequential(*layers)


class FpnDecoder(nn.Module):
    """Of maps that halve from stage to stage.

    Args: as `AsppDecoder`.
    """

    def __init__(self, widths: Sequence[int], width: int, outputs: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)
        self.residual = nn.ModuleList(Residual(width) for _ in widths)
        self.last = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits [batch, outputs, *size] of maps [batch, channels, h, w], the largest first."""
        levels = [lateral(one) for lateral, one in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], levels[i].shape[-2:], mode="nearest")
        levels = [smooth(one) for smooth, one in zip(self.smooth, levels, strict=True)]
        x = self.residual[-1](levels[-1])
        for i in range(len(levels) - 2, -1, -1):
            x = self.residual[i](levels[i] + resized(x, levels[i].shape[-2:]))
        made: Tensor = self.head(resized(self.last(doubled(x)), size))
        return made


class HrnetHead(nn.Module):
    """Of maps that halve from stage to stage: `width`, 2, 4, 8, ... times it channels of each, four times their sum between.

    Args: as `AsppDecoder`.
    """

    def __init__(self, widths: Sequence[int], width: int, outputs: int):
        super().__init__()
        reduced = [width * 2**i for i in range(len(widths))]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(widths, reduced, strict=True))  # fmt: skip
        total = sum(reduced)
        self.head = nn.Sequential(
            nn.Conv2d(total, 4 * total, 1),
            nn.BatchNorm2d(4 * total),
            nn.ReLU(),
            nn.Conv2d(4 * total, outputs, 1),
        )

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """As `AsppDecoder.forward`, of maps with the largest first."""
        joined = stacked([reduce(one) for reduce, one in zip(self.reduce, maps, strict=True)])
        return resized(self.head(joined), size)


class MlpHead(nn.Module):
    """Of maps that halve from stage to stage: `width` channels of each, and of what they are together.

    Args: as `AsppDecoder`.
    """

    def __init__(self, widths: Sequence[int], width: int, outputs: int):
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.fuse = nn.Sequential(
            nn.Conv2d(width * len(widths), width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """As `AsppDecoder.forward`, of maps with the largest first."""
        joined = stacked([reduce(one) for reduce, one in zip(self.reduce, maps, strict=True)])
        return resized(self.head(self.fuse(joined)), size)


DECODERS: dict[str, Any] = {"aspp": AsppDecoder, "fpn": FpnDecoder, "hrnet": HrnetHead, "mlp": MlpHead}
