"""VeRA: two trained vectors per layer between frozen random factors that all layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.fused import forming_pays, plain_weight, shaped
from adaptome.forms.low_rank import LowRank


class SharedFactors(nn.Module):
    """Frozen random A [r, widest in] and B [widest out, r], rebuilt from a seed and never stored."""

    rebuilt = ("A", "B")

    def __init__(self, r: int, hosts: Sequence[Host], seed: int):
        super().__init__()
        generator = None if torch.get_default_device().type == "meta" else torch.Generator().manual_seed(seed)
        A, B = torch.empty(r, max(h.fan_in for h in hosts)), torch.empty(max(h.fan_out for h in hosts), r)
        self.register_buffer("A", nn.init.kaiming_uniform_(A, a=5**0.5, generator=generator))
        self.register_buffer("B", nn.init.kaiming_uniform_(B, a=5**0.5, generator=generator))


@register(
    "vera",
    subcategory="low-rank, shared random factors",
    export="low-rank",
    hosts=("linear", "conv", "embedding"),
    source="Kopiczko et al. 2023, arXiv:2310.11454, section 3",
)
class VeRA(Method):
    r"""VeRA: two trained vectors per layer between frozen random factors that all layers share.

        y = W x + diag(b) B diag(d) A x

    when        many adapters have to be stored: a tenth of LoRA's numbers
    shapes      A [r, in], B [out, r] frozen, the corner of one pair for all layers; d [r], b [out]
    init        A, B Kaiming-uniform(a = sqrt 5) from `projection_seed` (not stored), d = `d_initial`, b = 0: starts as the base
    parameters  r + out per layer: 278,528 for LLaMA-2-7B, q and v, r = 256
    forward     by the factors; for many tokens with W + dW formed, and again in the backward. The gradients of d and b are sums over one
                [out, r] matrix, so that a step has five products with the factors at most
    merge       exact; export: peft-lora, exact
    source      Kopiczko et al. 2023, arXiv:2310.11454, section 3
    """

    r: int = option(256, at_least=1, help="rank; costs one number each")
    d_initial: float = option(0.1, help="the start of d")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    projection_seed: int = option(0, help="draws the shared factors")

    def parameters(self, host: Host) -> int:
        return self.r + host.fan_out

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return SharedFactors(self.r, hosts, self.projection_seed)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return VeRAAdapter(self, host, shared)


class VeRAAdapter(LowRank):
    """d and b of one layer."""

    def __init__(self, method: VeRA, host: Host, shared: nn.Module | None):
        super().__init__(host, 1.0, method.dropout, shared)
        self.d = nn.Parameter(torch.full((method.r,), method.d_initial, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(host.fan_out))

    def corner(self) -> tuple[Tensor, Tensor]:
        """The layer's part of the shared factors: A [r, in], B [out, r]."""
        return self.shared.A[:, : self.host.fan_in], self.shared.B[: self.host.fan_out]

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.corner()
        return self.d[:, None] * A, self.b[:, None] * B

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = None if self.dropout and self.training else plain_weight(self.host, frozen, x)
        if plain is None:
            return super().forward(frozen, x, *args, **kwargs)
        A, B = (factor.to(x.dtype) for factor in self.corner())
        y: Tensor = _Vectors.apply(x, *plain, A, B, self.d, self.b, self.strength)
        return y

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        """d acts on the r activations, so that nothing of x's width is saved for it."""
        A, B = self.corner()
        x = (
            nn.functional.dropout(x.to(y.dtype), self.dropout, self.training)
            if self.host.kind != "embedding"
            else x
        )
        z = self.host.reduce(x, A)
        channels = self.d.repeat(getattr(self.host.layer, "groups", 1))
        z = z * (self.host.along_output(channels) if self.host.kind == "conv" else channels).to(z.dtype)
        return self.host.add_expanded(y, z, self.b[:, None] * B, self.strength)


class _Vectors(torch.autograd.Function):
    """`x (W + s diag(b) B diag(d) A)^T + bias`: the gradients of d and b are sums over the same `M = grad^T (x A^T)`, at one product with each side."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, d: Tensor, b: Tensor, s: float
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        formed, z = forming_pays(W, len(rows)), None
        left, right = (s * b[:, None]).to(B.dtype) * B, d.to(A.dtype)[:, None] * A
        y = F.linear(rows, torch.addmm(W, left, right) if formed else W, bias)
        if not formed:
            z = rows @ A.t()
            y.addmm_(z * d.to(z.dtype), left.t())
        ctx.save_for_backward(x, W, A, B, d, b, z)
        ctx.s, ctx.formed = s, formed
        return shaped(y, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, W, A, B, d, b, z = ctx.saved_tensors
        g, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        left, right = (ctx.s * b[:, None]).to(B.dtype) * B, d.to(A.dtype)[:, None] * A
        dx = dd = db = None
        if ctx.needs_input_grad[0]:
            dx = g @ torch.addmm(W, left, right) if ctx.formed else (g @ W).addmm_(g @ left, right)
            dx = dx.view(x.shape)
        if ctx.needs_input_grad[5] or ctx.needs_input_grad[6]:
            if z is None or torch.is_grad_enabled():  # what is kept has no derivative of its own
                z = rows @ A.t()
            sums = B.to(d.dtype) * (z.t() @ g).t().to(d.dtype)
            dd, db = (b @ sums) * ctx.s, (sums @ d) * ctx.s
        return dx, None, None, None, None, dd, db, None
