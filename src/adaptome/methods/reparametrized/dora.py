"""DoRA: magnitude and direction of the weight trained apart, the direction by a low-rank update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host, autocasting
from adaptome.core.method import Method, option, register
from adaptome.forms.dropped import dropped_linear
from adaptome.forms.fused import plain_weight, run_pair
from adaptome.forms.low_rank import kaiming
from adaptome.forms.reparametrization import Reparametrization

Again: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        dropout = self.dropout if self.training else 0.0
        if plain is not None:
            W, bias = plain
            V, z, s = run_pair(x, W, (self.A, self.B), self.scale, dropout)
            again = (
                (lambda x, z, B: self.host.add_expanded(F.linear(x, W), z, B, s)) if z is not None else None
            )
            return self.scaled(V, bias, frozen, x, z, again)
        y: Tensor = frozen(x)
        bias = frozen.bias()
        x = x.to(y.dtype)
        z = dropped_linear(x, self.A.to(y.dtype), dropout) if dropout else self.host.reduce(x, self.A)
        V = self.direction(y, bias, z, self.B)
        out = self.scaled(V, bias, frozen, x, z, self._again(frozen, bias, x))
        return out if self.strength == 1.0 else torch.lerp(y, out, self.strength)

    def direction(self, y: Tensor, bias: Tensor | None, z: Tensor, B: Tensor) -> Tensor:
        """`V x` from the layer's output and `z = A x`."""
        return self.host.add_expanded(y if bias is None else y - bias.to(y.dtype), z, B, self.scale)

    def _again(self, frozen: Frozen, bias: Tensor | None, x: Tensor) -> Again | None:
        """What makes `V x` once more in the backward; None where running the layer again may draw other masks."""
        if frozen.below:
            return None
        kind, casting = x.device.type, autocasting(x)
        dtype = torch.get_autocast_dtype(kind) if casting else None

        def again(x: Tensor, z: Tensor, B: Tensor) -> Tensor:
            with torch.autocast(kind, dtype) if casting else nullcontext():
                return self.direction(frozen(x), bias, z, B)

        return again

    def scaled(
        self, V: Tensor, bias: Tensor | None, frozen: Frozen, x: Tensor, z: Tensor | None, again: Again | None
    ) -> Tensor:
        """`m V / ||W + s B A|| + b`: V `[..., out]`."""
        c = (self.m / self.norm(frozen)).to(V.dtype)
        b = None if bias is None else bias.to(V.dtype)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return V * c if b is None else torch.addcmul(b, V, c)
        out: Tensor = _ScaledRows.apply(V, c, b, x, z, self.B, again)
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
    """`c V + b`, keeping its output for the backward instead of V: most layers' outputs are kept by what reads them anyway.

    `again(x, z, B)` makes V once more, for a second derivative, and where the model has changed the output in place; without it V is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, V: Tensor, c: Tensor, b: Tensor | None, x: Tensor, z: Tensor | None, B: Tensor, again: Again | None
    ) -> Tensor:  # fmt: skip
        out = V * c if b is None else torch.addcmul(b, V, c)
        if out.is_inference():  # no backward follows, and its changes are not counted
            return out
        ctx.again = again if ctx.needs_input_grad[1] else None
        # the output under a count of changes of its own: autograd would refuse a changed one, and the count of the real one is read here
        kept = (V, None, None, None) if ctx.again is None else (out.data, x, z, B)
        ctx.save_for_backward(c, b, *kept)
        ctx.watch, ctx.version = out.detach(), out._version
        ctx.watch.data = out.new_empty(0)  # counts on without holding the numbers
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        c, b, kept, x, z, B = ctx.saved_tensors
        dc = None
        if ctx.needs_input_grad[1]:
            changed = ctx.watch._version != ctx.version
            if ctx.again is None or changed or torch.is_grad_enabled():
                V = kept if ctx.again is None else ctx.again(x, z, B)
                dc = (grad * V).flatten(0, -2).sum(0)
            else:
                scaled = (grad * (kept if b is None else kept - b)).flatten(0, -2).sum(0)
                # a row of magnitude 0 has lost its direction
                dc = torch.where(c == 0, 0, scaled / torch.where(c == 0, 1, c))
        return grad * c, dc, grad if ctx.needs_input_grad[2] else None, None, None, None, None
