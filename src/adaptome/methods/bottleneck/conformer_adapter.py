"""Conformer adapter: a bottleneck that convolves over time, beside the MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.forms.bottleneck import affine
from adaptome.forms.insertion import BesideMethod, Inserted
from adaptome.forms.tokens import as_batch, channels_last, depthwise


@register(
    "conformer-adapter", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("module",), default_targets=("up", "down"), source="Cappellazzo et al. 2023, arXiv:2312.03694",
)  # fmt: skip
class ConformerAdapter(BesideMethod):
    r"""Conformer adapter: a bottleneck that convolves over time, beside the MLP.

        y = MLP(x) + s A(x),    A(x) = U silu(BN(K * GLU(D LN(x) + d) + c)) + u

    when        audio transformers, where the order of frames matters
    shapes      D [2b, d], K [b, k] one filter a channel over the tokens, U [d, b]; b = size, or round(d / reduction)
    init        D and K Kaiming-uniform(a = sqrt 5), U = u = 0: starts as the base. The release zeroes every weight, and nothing
                but u would ever move
    statistics  BN's running mean and variance move in training mode alone, and are saved with the adapter
    pre_norm    False for parity with the release, which discards what its LN makes (its counts have LN's parameters all the same)
    tokens      as one line, special ones first; it looks both ways, so it is for encoders
    placement   as in `adaptformer`, or any other; the paper trains the norm in front of the adapted sub-layer too:
                `ad.attach(..., train='*.layernorm_after')`, as ViT and AST call it
    parameters  2d [LN] + 2 (d b + b) + (b k + b) + 2b [BN] + (b d + d) per block: 252,288 for AST, reduction = 96, k = 31
    merge       none: it is not linear
    source      Cappellazzo et al. 2023, arXiv:2312.03694
    """

    size: int = option(8, at_least=1, help="the bottleneck b")
    kernel: int = option(31, at_least=1, help="k, in tokens")
    pre_norm: bool = option(True, help="a layer norm on the adapter's input")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's output")

    def numbers(self, host: Host, fan_in: int, fan_out: int) -> int:
        b, norm = self.bottleneck(fan_in), 2 * fan_in * self.pre_norm
        return norm + 2 * b * (fan_in + 1) + b * (self.kernel + 1) + 2 * b + fan_out * (b + 1)

    def network(self, host: Host, shared: nn.Module | None) -> Inserted:
        return ConformerNetwork(self, host, shared)


class ConformerNetwork(Inserted):
    """The network of one sub-layer."""

    def __init__(self, method: ConformerAdapter, host: Host, shared: nn.Module | None):
        super().__init__(host, method.how(), method.scale, method.drop, shared)
        fan_in, fan_out = method.widths(host)
        b = method.bottleneck(fan_in)
        self.dropout = method.dropout
        self.norm = nn.LayerNorm(fan_in) if method.pre_norm else None
        self.D, self.d = nn.Parameter(torch.empty(2 * b, fan_in)), nn.Parameter(torch.zeros(2 * b))
        self.K, self.c = nn.Parameter(torch.empty(b, method.kernel)), nn.Parameter(torch.zeros(b))
        self.bn = BatchNorm(b, torch.promote_types(host.dtype, torch.float32))
        self.U, self.u = nn.Parameter(torch.zeros(fan_out, b)), nn.Parameter(torch.zeros(fan_out))
        nn.init.kaiming_uniform_(self.D, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.K, a=math.sqrt(5))

    def network(self, h: Tensor) -> Tensor:
        x = as_batch(h, "conformer-adapter")
        if self.norm is not None:
            w, b = self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype)
            x = F.layer_norm(x, w.shape, w, b, self.norm.eps)
        z = F.glu(affine(x, self.D, self.d)).mT
        z = F.silu(self.bn(depthwise(z, self.K, self.c)))
        y = F.dropout(affine(channels_last(z), self.U, self.u), self.dropout, self.training)
        return y.view(*h.shape[:-1], -1)


class BatchNorm(nn.Module):
    """Batch norm over samples and tokens, in the activations' precision; its statistics are kept in at least float32.

    No nn.BatchNorm1d: the base's are frozen whole, and its statistics could not be of another type than the activations.
    """

    def __init__(self, channels: int, dtype: torch.dtype, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels, dtype=dtype))
        self.register_buffer("var", torch.ones(channels, dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        mean, var = self.get_buffer("mean"), self.get_buffer("var")
        gamma, beta = self.gamma.to(z.dtype), self.beta.to(z.dtype)
        if not self.training:
            return F.batch_norm(z, mean.to(z.dtype), var.to(z.dtype), gamma, beta, eps=self.eps)
        with torch.no_grad():
            var_now, mean_now = torch.var_mean(z.to(mean.dtype), (0, 2))
            mean.lerp_(mean_now, self.momentum)
            var.lerp_(var_now, self.momentum)
        return F.batch_norm(z, None, None, gamma, beta, training=True, eps=self.eps)
