"""`x W^T + b + s (A dropout(x)) B^T` in one node of the graph, where a linear layer is one product with its own frozen, dense weight.

For many tokens `W + s B A` is formed, and again in the backward: reading and writing a weight costs less than reading and writing the
activations. Else the low-rank term is added in place to the layer's fresh output, and its input gradient to the layer's, so that neither
is copied; the thin products are laid out as a CPU's matrix product likes them. What is kept is what autograd would keep: x where A is
trained, A x where B is, and one bit a number for dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Conv1DHost, Host, autocasting
from adaptome.forms.dropped import keep, pack, unpack


def plain_weight(host: Host, frozen: Frozen, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """`W [out, in]` (a view of it as it lies) and the bias, where running the layer on x is one product with them; else None.

    Under torch.compile and torch.func it is None too: they do as well, or need, plain operations.
    """
    layer = frozen.layer
    if host.kind != "linear" or host.packed or not frozen.pristine or torch.compiler.is_compiling():
        return None
    if not (layer._base.forward is nn.Linear.forward or isinstance(host, Conv1DHost)):
        return None
    W, b = layer._parameters["weight"], layer._parameters["bias"]
    if "_instance_forward" in layer.__dict__ or W.dtype != x.dtype or autocasting(x):
        return None
    if W.requires_grad or (b is not None and b.requires_grad) or torch._C._are_functorch_transforms_active():
        return None
    return (W.t() if isinstance(host, Conv1DHost) else W), b


def forming_pays(W: Tensor, tokens: int) -> bool:
    """Whether one product with a formed `W + dW` is the better form of a cheap update: W `[out, in]`, for a call of so many tokens.

    Never in half precision, where the sum would round a small update away.
    """
    return W.element_size() >= 4 and tokens * sum(W.shape) > 2 * W.numel()


Factors = tuple[Tensor, Tensor]


def linear_with_pair(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    pair: Factors,
    scale: float,
    dropout: float = 0.0,
    again: Callable[[], Factors] | None = None,
) -> Tensor:
    """`x W^T + b + scale (A dropout(x)) B^T`: x `[..., in]`, W `[out, in]`, the pair A `[r, in]` and B `[out, r]`.

    W and b get no gradient. With `again`, A and B are not kept for the backward, which calls it to have them once more.
    """
    mask, kept = keep(x, dropout) if dropout else (None, 1.0)
    A, B = pair
    y: Tensor = _LinearWithPair.apply(x, W, b, A.to(x.dtype), B.to(x.dtype), scale, mask, kept, again)[0]
    return y


def _laid(matrix: Tensor) -> Tensor:
    """A small matrix in the order of its rows; on accelerators as it is, for their libraries take either."""
    return matrix.contiguous() if matrix.device.type == "cpu" else matrix


class _LinearWithPair(torch.autograd.Function):
    """y, and z = A dropout(x): an output too, so that what is kept of it has a derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float, mask: Tensor | None, kept: float,
        again: Callable[[], Factors] | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        trains_A, trains_B = ctx.needs_input_grad[3:5]
        formed = mask is None and forming_pays(W, len(rows))
        y = F.linear(rows, torch.addmm(W, B, A, alpha=s) if formed else W, b)
        z: Any = None
        if trains_B or not formed:
            z = (rows if mask is None else rows * mask.view(rows.shape)) @ _laid(A.t())
        if not formed:
            y.addmm_(z, _laid(B.t()), alpha=s * kept)
        ctx.s, ctx.again, ctx.lead, ctx.formed = s * kept, again, x.shape[:-1], formed
        bits = None if mask is None or not (trains_A or ctx.needs_input_grad[0]) else pack(mask)
        pair = (A, B) if again is None else (None, None)
        ctx.save_for_backward(x if trains_A else None, W, *pair, z if trains_B else None, bits)
        ctx.set_materialize_grads(False)
        return y.view(*x.shape[:-1], y.shape[-1]), z

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None) -> Any:
        x, W, A, B, z, bits = ctx.saved_tensors
        if ctx.again is not None:
            A, B = (factor.to(W.dtype) for factor in ctx.again())
        if grad is None:
            grad = W.new_zeros(*ctx.lead, len(W))
        g = grad.reshape(-1, len(W))
        shape = torch.Size((*ctx.lead, A.shape[-1]))
        mask = None if bits is None else unpack(bits, shape).view(len(g), -1)
        dx = dA = dB = None
        u: Any = None
        if ctx.needs_input_grad[3] or not ctx.formed:
            u = (g @ _laid(B.t()).t()) * ctx.s
            if grad_z is not None:
                u = u + grad_z
        if ctx.needs_input_grad[0]:
            dx = g @ (torch.addmm(W, B, A, alpha=ctx.s) if ctx.formed else W)
            if ctx.formed:
                if grad_z is not None:
                    dx.addmm_(grad_z, A)
            elif mask is None:
                dx.t().addmm_(A.t(), u.t())
            else:
                dx.addcmul_(u @ A, mask)
            dx = dx.view(shape)
        if ctx.needs_input_grad[3]:
            rows = x.reshape(-1, x.shape[-1])
            dA = u.t() @ (rows if mask is None else rows * mask)
        if ctx.needs_input_grad[4]:
            dB = (z.t() @ g).t() * ctx.s
        return dx, None, None, dA, dB, None, None, None, None
