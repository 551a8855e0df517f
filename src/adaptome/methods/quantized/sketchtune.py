"""SketchTune: train the shared values of a sketched model, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, register
from adaptome.forms.delta import Delta
from adaptome.forms.tables import gather_rows, scatter_rows
from adaptome.quantization.formats import Sketch, gathered
from adaptome.quantization.layers import PackedLinear


@register(
    "sketchtune", category="selective", subcategory="sketched values", export="delta", hosts=("linear",),
    structure_changed=False, needs="layers that ad.quantize(model, 'sketch') made",
    source="Zhang et al. 2024, arXiv:2410.06364, section 3",
)  # fmt: skip
class SketchTune(Method):
    r"""SketchTune: train the shared values of a sketched model, and nothing else.

        y = W' x,    W'[o, j] = T[o, group of j, C[o, j]]

    when        the base was compressed by `ad.quantize(model, "sketch")` and one path, without an adapter beside it, is wanted
    shapes      C [out, in] frozen codes of `bits` bits, in the layer; T [out, tables, 2^bits] trained; x [..., in] -> y [..., out]
    init        T = the layer's own tables: starts as the sketched base, in float32, for steps of a usual learning rate are below
                half precision's spacing
    parameters  tables 2^bits out per layer: 21,757,952 for LLaMA-2-7B, all-linear, 4 bits, one table; 88,080,384 for
                LLaMA-3-8B with four
    forward     W' is gathered, and again in the backward; grad T[o, g, k] = sum of grad W'[o, j] over the j of group g with C[o, j] = k
    saved       T alone: tasks are switched by another T on the same codes
    merge       into the layer's tables, rounded to their type (requantise=True; the codes stay)
    source      Zhang et al. 2024, arXiv:2410.06364, section 3
    """

    def parameters(self, host: Host) -> int:
        form = host.layer.form
        return int(form.tables * form.levels * host.fan_out)

    def admits(self, host: Host) -> str | None:
        layer: Any = host.layer
        if not isinstance(layer, PackedLinear) or not isinstance(layer.form, Sketch):
            return "it trains the tables of sketched layers, and this is none; ad.quantize(model, 'sketch') makes them"
        return super().admits(host)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SketchTuneAdapter:
        return SketchTuneAdapter(host)


class SketchTuneAdapter(Delta):
    """T of one layer."""

    def __init__(self, host: Host):
        super().__init__(host, fast=True)
        self.T = nn.Parameter(self.own().clone())

    def bytes(self) -> Tensor:
        """The base's own bytes, whatever is merged into them."""
        layer: Any = self.host.layer
        own: Tensor = layer.__dict__.get("_unmerged", {}).get("weight", layer._parameters["weight"])
        return own.detach()

    def own(self) -> Tensor:
        """The tables of the base."""
        return self.host.layer.form.table(self.bytes(), self.host.fan_in)

    def delta(self) -> Tensor:
        codes = self.host.layer.form.codes(self.bytes(), self.host.fan_in)
        return gathered(self.T - self.own().to(self.T), codes)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.delta().to(x.dtype))

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = frozen.pristine and not torch.compiler.is_compiling()
        if not plain or torch._C._are_functorch_transforms_active():
            return super().forward(frozen, x, *args, **kwargs)
        T = self.T if self.strength == 1.0 else torch.lerp(self.own().to(self.T), self.T, self.strength)
        y: Tensor = _Gathered.apply(x, T, self.bytes(), frozen.bias(), self.host.layer.form, self.host.fan_in)
        return y


class _Gathered(torch.autograd.Function):
    """`x W'^T + b`, keeping x, the tables and the bytes of the codes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, T: Tensor, data: Tensor, bias: Tensor | None, form: Sketch, fan_in: int
    ) -> Tensor:
        ctx.form, ctx.fan_in, ctx.bias = form, fan_in, None if bias is None else bias.dtype
        ctx.save_for_backward(x, T, data)
        W = gather_rows(T, data, form.bits, fan_in, x.dtype)
        return F.linear(x, W, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, T, data = ctx.saved_tensors
        g = grad.flatten(0, -2) if grad.dim() > 1 else grad[None]
        dx = dT = db = None
        if ctx.needs_input_grad[0]:
            dx = (grad @ gather_rows(T, data, ctx.form.bits, ctx.fan_in, grad.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dW = g.t() @ x.reshape(-1, x.shape[-1]).to(g.dtype)
            dT = scatter_rows(dW, data, ctx.form.bits, T.shape).to(T.dtype)
        if ctx.needs_input_grad[3]:
            db = g.sum(0).to(ctx.bias)
        return dx, dT, None, db, None, None
