"""UniPELT: a prefix, LoRA and a bottleneck at once, each behind a gate that reads the sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.hosts import Host, first_input
from adaptome.core.method import Method, option, register
from adaptome.core.threads import alone
from adaptome.forms import prefix
from adaptome.forms.bottleneck import ACTIVATIONS, Activation, affine
from adaptome.forms.insertion import hidden, with_hidden
from adaptome.forms.low_rank import kaiming

MAPS = ("q", "v", "qkv", "kv")


@register(
    "unipelt", category="hybrid", subcategory="gated prefix, LoRA and bottleneck adapter", identity_at_init=False, merge="none", export="none",
    inference_overhead="extra modules", hosts=("module",), default_targets=("attention-blocks", "q", "v", "down"), budget_setting="size",
    source="Mao et al. 2022, arXiv:2110.07577",
)  # fmt: skip
class UniPELT(Method):
    r"""UniPELT: a prefix, LoRA and a bottleneck at once, each behind a gate that reads the sample.

        y = attention(q, [g K; k], [g V; v])                    attention modules, g of the attention's input
        y = W x + g (alpha / r) B A x                           q and v, g of x
        z = W x;  y = z + g (U f(D z + d) + u)                  the MLP's last map (or a whole MLP), g of z
        g = mean over the sample's tokens of sigmoid(w . h + c)

    when        it is not known which of LoRA, prefixes and bottlenecks suits: gates weigh them
    shapes      w [d], c a number, one gate per place; K, V as in `prefix-tuning`; A [r, in], B [out, r]; D [b, d], U [d, b]
    init        A, D Kaiming-uniform(a = sqrt 5), B = U = 0; w, K, V ~ N(0, 0.02^2), c = 0, so that g is near 1/2: not as the base
    tokens      a gate reads all tokens of its sample, padding too: for encoders
    parameters  gates counted: 1,410,672 for RoBERTa-base, p = 10, r = 8, b = 48
    merge       none: the gates read the sample
    source      Mao et al. 2022, arXiv:2110.07577
    """

    around_experts = True
    size: int = option(48, at_least=1, help="the bottleneck b")
    r: int = option(8, at_least=1, help="rank of the updates of q and v")
    alpha: float = option(16.0, help="these are scaled by alpha / r")
    p: int = option(10, at_least=1, help="how many keys, and values, per attention")
    activation: Activation = option("relu", help="f")
    std: float = option(0.02, above=0, help="of the start of prefixes and gates")

    def admits(self, host: Host) -> str | None:
        if host.role == "mlp-block":
            return None
        if host.kind == "module":
            return prefix.refusal(host)
        if host.kind == "linear" and (host.role in MAPS or host.role == "down"):
            return None
        return f"its parts sit on attention modules, on maps to q and v and on MLPs' last maps; this is {host.role!r}"

    def parameters(self, host: Host) -> int:
        if host.kind == "module" and host.role != "mlp-block":
            return 2 * self.p * prefix.prefix_width(host) + host.width + 1
        d = host.fan_out
        if host.role in MAPS:
            return self.r * (host.fan_in + d) + host.fan_in + 1
        return 2 * d * self.size + self.size + d + d + 1

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        if host.kind == "module" and host.role != "mlp-block":
            return (GatedCachedPrefix if prefix.through_cache(host) else GatedPrefix)(self, host)
        return (GatedLoRA if host.role in MAPS else GatedBottleneck)(self, host)


class Gate(nn.Module):
    """One number a sample, between 0 and 1: h `[batch, tokens, d]` to `[batch, 1, 1]`."""

    def __init__(self, width: int, std: float):
        super().__init__()
        self.w, self.c = nn.Parameter(torch.randn(1, width) * std), nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> Tensor:
        opened = affine(h, self.w, self.c).sigmoid()
        return opened.mean(tuple(range(1, h.dim() - 1)), keepdim=True) if h.dim() > 2 else opened


class GatedLoRA(Adapter):
    """The update of q or v. Its gate reads the sample, so there is no one weight into which it could merge."""

    own_strength = True

    def __init__(self, method: UniPELT, host: Host):
        super().__init__(host)
        self.scale = method.alpha / method.r
        self.A = nn.Parameter(kaiming(torch.empty(method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(host.fan_out, method.r))
        self.gate = Gate(host.fan_in, method.std)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        x = x.to(y.dtype)
        return self.host.add_expanded(
            y, self.host.reduce(x, self.A) * self.gate(x), self.B, self.scale * self.strength
        )


class GatedBottleneck(Adapter):
    """The bottleneck behind an MLP's last map."""

    own_strength = True

    def __init__(self, method: UniPELT, host: Host):
        super().__init__(host)
        d, b = host.fan_out, method.size
        self.activation = ACTIVATIONS[method.activation]
        self.D, self.d = nn.Parameter(kaiming(torch.empty(b, d))), nn.Parameter(torch.zeros(b))
        self.U, self.u = nn.Parameter(torch.zeros(d, b)), nn.Parameter(torch.zeros(d))
        self.gate = Gate(d, method.std)

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        output = frozen(*args, **kwargs)
        z = hidden(output)
        made = affine(self.activation(affine(z, self.D, self.d)), self.U, self.u)
        return with_hidden(output, z + self.share(self.gate(z) * made))


class Gated(prefix.KeyValuePair):
    """A prefix whose keys and values are shrunk by the gate of each sample."""

    opened: Tensor | None = None

    def __init__(self, method: UniPELT, host: Host):
        super().__init__(host, method.p, method.std)
        self.gate = Gate(host.width, method.std)

    @contextmanager
    def reading(self, x: Tensor) -> Iterator[None]:
        """Open the gate of each sample of x `[batch, tokens, d]` for the attention's forward."""
        with alone(self.host.layer):
            self.opened = self.gate(x)[..., None]
            try:
                yield
            finally:
                self.opened = None

    def values(self) -> tuple[Tensor, Tensor]:
        K, V = super().values()
        assert self.opened is not None  # `forward` is around every use
        return K * self.opened, V * self.opened


class GatedPrefix(Gated, prefix.Prefix):
    """Of an attention that computes its scores by transformers' interface."""


class GatedCachedPrefix(Gated, prefix.CachedPrefix):
    """Of an attention that has a way of its own."""

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        with self.reading(first_input(self.host.layer, args, kwargs)):
            return super().forward(frozen, *args, **kwargs)
