r"""Fusion of the feature maps of several modalities at one stage, whatever their number.

    x = W [m_1; ...; m_M],    y = x + sum_{k = 3, 5, 7} D_k x,    z = y * sigmoid(V relu(U mean(y))),    out = norm(x + P gelu(z))

where     D_k is a depth-wise convolution, the mean is over the map, and norm a LayerNorm over channels
shapes    m_i [batch, C_i, h, w] -> [batch, C, h, w], C the first modality's
source    the fusion block of MMSFormer (Reza et al. 2023, arXiv:2309.04001): concatenation, a linear layer, convolutions at three sizes, attention
          to channels. Its order of norms is not told there, and is this file's
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = (3, 5, 7)
#: channels are squeezed to this share
SQUEEZE = 4


class MapFusion(nn.Module):
    """One stage.

    Args:
        widths: channels of each modality's maps.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        width = widths[0]
        self.join = nn.Conv2d(sum(widths), width, 1)
        self.scales = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in SIZES)
        self.squeeze, self.spread = (
            nn.Linear(width, max(width // SQUEEZE, 1)),
            nn.Linear(max(width // SQUEEZE, 1), width),
        )
        self.mix = nn.Conv2d(width, width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map of the modalities' maps, all of one size."""
        x = self.join(torch.cat(list(maps), 1))
        y = x + sum(scale(x) for scale in self.scales)
        gate = self.spread(F.relu(self.squeeze(y.mean((2, 3))))).sigmoid()
        mixed = x + self.mix(F.gelu(y * gate[..., None, None]))
        made: Tensor = self.norm(mixed.movedim(1, -1)).movedim(-1, 1)
        return made
