"""DoRA: magnitude and direction of the weight trained apart, the direction by a low-rank update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.dropped import dropped_linear
from adaptome.forms.fused import linear_with_pair, plain_weight
from adaptome.forms.low_rank import kaiming
from adaptome.forms.reparametrization import Reparametrization


@register(
    "dora",
    subcategory="low-rank, magnitude and direction",
    export="delta",
    source="Liu et al. 2024, arXiv:2402.09353, section 4",
)
class DoRA(Method):
    r"""DoRA: magnitude and direction of the weight trained apart, the direction by a low-rank update.

        W' = m * V / ||V||,    V = W + s B A,  s = alpha / r;  norms over the inputs of each output row

    when        LoRA at a low rank leaves a gap to full fine-tuning; a step costs a little more
    shapes      W [out, in] frozen; A [r, in], B [out, r]; m [out]; x [..., in] -> y [..., out]
    init        A Kaiming-uniform(a = sqrt 5), B = 0, m = ||W||: starts as the base
    parameters  r (in + out) + out per layer: 4,456,448 for LLaMA-2-7B, q and v, r = 8
    forward     linear layers: c (W x + s B A x) + (bias), c = m / ||V||, with ||V||^2 from W A^T and A A^T: V is never built
    gradient    none through the norm, as in section 4.3 of the paper
    merge       exact; export: peft-dora, or LoRA by SVD with its error told
    source      Liu et al. 2024, arXiv:2402.09353, section 4
    """

    r: int = option(8, at_least=1, help="rank of the direction's update")
    alpha: float = option(16.0, help="the update is scaled by alpha / r")
    dropout: float = option(
        0.0, at_least=0, below=1, help="on the low-rank branch's input; linear layers only"
    )

    def parameters(self, host: Host) -> int:
        return (self.r * (host.fan_in + host.fan_out) + host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> DoRAAdapter:
        return DoRAAdapter(self, host)


class DoRAAdapter(Reparametrization):
    """A, B and m of one layer."""

    rebuilt = ("squares",)

    def __init__(self, method: DoRA, host: Host):
        super().__init__(host)
        self.scale, self.dropout = method.alpha / method.r, method.dropout
        self.fast = host.kind == "linear"
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))
        W = host.weight()
        squares = W.to(torch.promote_types(W.dtype, torch.float32)).square().sum(-1)
        self.m = nn.Parameter(squares.sqrt())
        self.register_buffer("squares", squares)

    def weight(self, W: Tensor) -> Tensor:
        V = W + self.scale * (self.B.to(W.dtype) @ self.A.to(W.dtype))
        return V * (self.m.to(W.dtype) / V.detach().norm(dim=-1))[..., None]

    def forward(self, frozen: Frozen, x: Tensor) -> Tensor:
        plain = plain_weight(self.host, frozen, x) if self.strength == 1.0 else None
        if plain is not None:
            dropout = self.dropout if self.training else 0.0
            V = linear_with_pair(x, plain[0], None, (self.A, self.B), self.scale, dropout)
            return self.scaled(V, plain[1], frozen)
        y: Tensor = frozen(x)
        bias = frozen.bias()
        V = y if bias is None else y - bias.to(y.dtype)
        x = x.to(y.dtype)
        z = (
            dropped_linear(x, self.A.to(y.dtype), self.dropout)
            if self.dropout and self.training
            else self.host.reduce(x, self.A)
        )
        out = self.scaled(self.host.add_expanded(V, z, self.B, self.scale), bias, frozen)
        return out if self.strength == 1.0 else torch.lerp(y, out, self.strength)

    def scaled(self, V: Tensor, bias: Tensor | None, frozen: Frozen) -> Tensor:
        """`m V / ||W + s B A|| + b`: V `[..., out]`."""
        c = (self.m / self.norm(frozen)).to(V.dtype)
        out: Tensor = _ScaledRows.apply(V, c, None if bias is None else bias.to(V.dtype))
        return out

    @torch.no_grad()
    def norm(self, frozen: Frozen) -> Tensor:
        """`||W + s B A||` of every row, from products with r columns."""
        W = frozen.weight()
        squares: Any = self.squares if frozen.pristine else W.to(self.m.dtype).square().sum(-1)
        cross = (W @ self.A.to(W.dtype).mT).to(self.m.dtype)
        gram = self.A @ self.A.mT
        squares = squares + ((2 * self.scale) * cross + self.scale**2 * (self.B @ gram)).mul(self.B).sum(-1)
        return squares.clamp_min(0).sqrt()


class _ScaledRows(torch.autograd.Function):
    """`c V + b`, keeping its output for the backward instead of V: most layers' outputs are kept by what reads them anyway."""

    @staticmethod
    def forward(ctx: Any, V: Tensor, c: Tensor, b: Tensor | None) -> Tensor:
        out = V * c if b is None else torch.addcmul(b, V, c)
        ctx.save_for_backward(out, c, b)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        out, c, b = ctx.saved_tensors
        dc = None
        if ctx.needs_input_grad[1]:
            scaled = (grad * (out if b is None else out - b)).flatten(0, -2).sum(0)
            dc = torch.where(
                c == 0, 0, scaled / torch.where(c == 0, 1, c)
            )  # a row of magnitude 0 has lost its direction
        return grad * c, dc, grad if ctx.needs_input_grad[2] else None
