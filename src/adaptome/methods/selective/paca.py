"""PaCA: train a few input columns of each frozen weight, saving only their activations."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.delta import Delta
from adaptome.forms.fused import forming_pays, plain_weight, shaped


def channels(host: Host) -> int:
    """Input channels of the weight: columns, or of a convolution groups of prod(k) columns."""
    return host.fan_in // taps(host)


def taps(host: Host) -> int:
    """Columns of the canonical weight that one input channel owns."""
    return math.prod(host.layer.kernel_size) if host.kind == "conv" else 1


@register(
    "paca", category="selective", subcategory="random columns", structure_changed=False, export="low-rank",
    hosts=("linear", "conv", "experts", "parameter"), source="Woo et al. 2025, arXiv:2503.01905, section 3",
)  # fmt: skip
class PaCA(Method):
    r"""PaCA: train a few input columns of each frozen weight, saving only their activations.

        y = W' x + b,    W'[:, I] = W[:, I] + s P  and W elsewhere,    s = alpha / r

    when        the time and the memory of a training step are the limit: they are nearly the frozen model's
    shapes      W [out, in] frozen, quantised or not; I r distinct columns; P [out, r]; convolutions: I names input channels (of a
                group), each with its prod(k) taps, P [out, r prod(k)]; fused experts: I for all, P [experts, out, r]
    init        P = 0: starts as the base; I drawn from the seed, or the columns of largest or smallest norm; I is saved
    parameters  r out per layer (r prod(k) out on convolutions; every column where there are fewer than r): 10,878,976 for
                LLaMA-2-7B, all-linear, r = 8
    forward     (W x + b) + s P x[I]; backward: grad x = W'^T g, grad P = s g x[I]^T; only x[I] is saved, r numbers a token. P is
                added in its own precision, and W is read where it lies, so a quantised one stays quantised
    training    with Adam the columns move by s times the learning rate
    merge       exact; export: peft-lora, exact: A = rows of the identity, B = s P
    source      Woo et al. 2025, arXiv:2503.01905, section 3; the authors' code trains W[:, I] / s itself, in place: the same but for
                weight decay, which pulls towards the base here
    """

    r: int = option(8, at_least=1, help="trained columns")
    alpha: float = option(16.0, help="the columns' update is scaled by alpha / r")
    selection: Literal["random", "largest", "smallest"] = option(
        "random", help="which columns: drawn, or by norm"
    )

    def columns(self, host: Host) -> int:
        """r, or all input channels where there are fewer."""
        return min(self.r, channels(host))

    def parameters(self, host: Host) -> int:
        return self.columns(host) * taps(host) * host.fan_out * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PaCAAdapter:
        return PaCAAdapter(self, host)


class PaCAAdapter(Delta):
    """P and I of one layer."""

    I: Tensor
    scale: float

    def __init__(self, method: PaCA, host: Host):
        super().__init__(host, fast=host.has_product)
        self.scale, self.taps = method.alpha / method.r, taps(host)
        r = method.columns(host)
        if method.selection == "random":
            chosen = torch.randperm(channels(host))[:r]
        else:
            W = host.weight().float().reshape(-1, channels(host), self.taps)
            chosen = W.norm(dim=(0, 2)).topk(r, largest=method.selection == "largest").indices
        self.register_buffer("I", chosen.sort().values)
        self.P = nn.Parameter(torch.zeros(*host.lead, host.fan_out, r * self.taps))

    def limits(self) -> dict[str, Any]:
        return {"I": channels(self.host)}

    def columns(self) -> Tensor:
        """The trained columns of the canonical weight."""
        if self.taps == 1:
            return self.I
        return (self.I[:, None] * self.taps + torch.arange(self.taps, device=self.I.device)).flatten()

    def delta(self) -> Tensor:
        return self.changed("", self.P.new_zeros(self.host.shape))

    def changed(self, name: str, value: Tensor) -> Tensor:
        return value.index_add(-1, self.columns(), self.scale * self.P.to(value.dtype))

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scale = self.scale * self.strength
        plain = plain_weight(self.host, frozen, x)
        if plain is not None:
            y: Tensor = _Columns.apply(x, *plain, self.P, self.I, scale)
            return y
        y = frozen(x, *args, **kwargs)
        if self.host.kind == "conv":
            conv = self.host.layer
            first = torch.arange(conv.groups, device=self.I.device) * (conv.in_channels // conv.groups)
            z = x.index_select(-1 - len(conv.kernel_size), (first[:, None] + self.I).flatten())
            kernel = self.P.view(self.host.fan_out, len(self.I), *conv.kernel_size).to(y.dtype)
            return torch.add(y, conv._conv_forward(z.to(y.dtype), kernel, None), alpha=scale)
        return self.host.add_expanded(y, x.index_select(-1, self.I).to(y.dtype), self.P, scale)

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """A = the identity's rows I, B = s P."""
        columns = self.columns()
        A = torch.zeros(*self.host.lead, len(columns), self.host.fan_in, device=columns.device)
        A[..., torch.arange(len(columns), device=columns.device), columns] = 1.0
        return A, self.P.detach() * (self.scale * self.strength)


class _Columns(torch.autograd.Function):
    """`x W'^T + b` of a frozen W, saving of x the columns I alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, P: Tensor, I: Tensor, s: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        selected = rows.index_select(1, I)
        ctx.s, ctx.formed = s, forming_pays(W, len(rows))
        if ctx.formed:
            y = F.linear(rows, W.index_add(1, I, P.to(W.dtype), alpha=s), b)
        else:
            y = F.linear(rows, W, b)
            y.addmm_(selected, P.to(y.dtype).t(), alpha=s)
        ctx.save_for_backward(selected, W, P, I)
        return shaped(y, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        selected, W, P, I = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_P = None
        if ctx.needs_input_grad[0]:
            if ctx.formed:
                grad_x = rows @ W.index_add(1, I, P.to(W.dtype), alpha=ctx.s)
            else:
                grad_x = rows @ W
                grad_x.index_add_(1, I, rows @ P.to(rows.dtype), alpha=ctx.s)
            grad_x = grad_x.view(*grad.shape[:-1], grad_x.shape[-1])
        if ctx.needs_input_grad[3]:
            grad_P = (selected.t() @ rows).t().to(
                P.dtype
            ) * ctx.s  # in this order the product is twice as fast
        return grad_x, None, None, grad_P, None, None
