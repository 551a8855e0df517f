"""Convpass: a bottleneck that convolves over the tokens' grid, beside the sub-layers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.forms.bottleneck import affine
from adaptome.forms.insertion import BesideMethod, Inserted
from adaptome.forms.tokens import as_batch, channels_last, conv, grid_of


@register(
    "convpass", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("module",), default_targets=("q", "o", "up", "down"), source="Jie and Deng 2022, arXiv:2207.07039",
)  # fmt: skip
class Convpass(BesideMethod):
    r"""Convpass: a bottleneck that convolves over the tokens' grid, beside the sub-layers.

        y = f(x) + s A(x),    A(x) = U g(K * g(D x + d) + c) + u,    g = QuickGELU, f the attention and the MLP

    when        vision and audio transformers with little data, where what lies near helps
    shapes      D [b, d], K [b, b, 3, 3] over the grid of patches (dims = 1: [b, b, 3] over the line of all tokens), U [d, b]
    grid        a square unless `rows` tells its height (12 for AST); tokens in front that do not fit into it are special ones (at most
                8 in front of a square), and each is a grid of its own, of one patch. Activations [batch, high, wide, d] are a grid as they are
    init        D Xavier-uniform; K the identity (1 in the middle of each channel's own filter); the rest 0: starts as the base
    scale       the paper takes s from {0.01, 0.1, 1, 10, 100} for each task
    placement   as in `adaptformer`
    tokens      it looks both ways, so it is for encoders
    parameters  2 d b + b + d + 9 b^2 + b per sub-layer: 327,552 for ViT-B, b = 8, both of each block
    merge       none: it is not linear
    source      Jie and Deng 2022, arXiv:2207.07039; one dimension: Cappellazzo et al. 2024, arXiv:2402.00828, whose release
                computes the convolution and does not use it
    """

    size: int = option(8, at_least=1, help="the bottleneck b")
    dims: Literal[1, 2] = option(2, help="convolve over the grid, or over the line of all tokens")
    rows: int = option(0, at_least=0, help="height of the grid; 0: it is a square")
    dropout: float = option(0.1, at_least=0, below=1, help="in front of U")

    def numbers(self, host: Host, fan_in: int, fan_out: int) -> int:
        b = self.bottleneck(fan_in)
        return b * (fan_in + 1) + 3**self.dims * b * b + b + fan_out * (b + 1)

    def network(self, host: Host, shared: nn.Module | None) -> Inserted:
        return ConvpassNetwork(self, host, shared)


class ConvpassNetwork(Inserted):
    """The network of one sub-layer."""

    def __init__(self, method: Convpass, host: Host, shared: nn.Module | None):
        super().__init__(host, method.how(), method.scale, method.drop, shared)
        fan_in, fan_out = method.widths(host)
        b = method.bottleneck(fan_in)
        self.rows, self.dropout = method.rows, method.dropout
        self.D, self.d = nn.Parameter(torch.empty(b, fan_in)), nn.Parameter(torch.zeros(b))
        self.K = nn.Parameter(torch.zeros(b, b, *[3] * method.dims))
        self.c = nn.Parameter(torch.zeros(b))
        self.U, self.u = nn.Parameter(torch.zeros(fan_out, b)), nn.Parameter(torch.zeros(fan_out))
        nn.init.xavier_uniform_(self.D)
        nn.init.dirac_(self.K)

    def network(self, h: Tensor) -> Tensor:
        x = as_batch(h, "convpass")
        z = quick_gelu(affine(x, self.D, self.d)).mT
        z = quick_gelu(self.over_grid(z, h) if self.K.dim() == 4 else self.over_line(z))
        y = affine(F.dropout(channels_last(z), self.dropout, self.training), self.U, self.u)
        return y.view(*h.shape[:-1], -1)

    def over_line(self, z: Tensor) -> Tensor:
        """The convolution over all tokens: z `[batch, b, tokens]`."""
        return conv(z, self.K, self.c, padding=1)

    def over_grid(self, z: Tensor, h: Tensor) -> Tensor:
        """The convolution over the grid; special tokens meet the kernel's centre alone, for around them is nothing."""
        special, high, wide = (
            grid_of(z.shape[2], self.rows, "convpass") if h.dim() == 3 else (0, *h.shape[1:3])
        )
        grid = conv(z[:, :, special:].unflatten(2, (high, wide)), self.K, self.c, padding=1).flatten(2)
        if special == 0:
            return grid
        alone = affine(channels_last(z[:, :, :special]), self.K[:, :, 1, 1], self.c).mT
        return torch.cat([alone, grid], 2)


def quick_gelu(x: Tensor) -> Tensor:
    """`x sigmoid(1.702 x)`."""
    return x * torch.sigmoid(1.702 * x)
