"""Linear layers whose weight lies in bytes, and what merging asks of them: our own formats beside those of the libraries.

A layer has one parameter `weight`, bytes `[out, row_bytes]`, and perhaps a bias. It computes in the type of its input; the weight is
decoded for the forward and again for the backward, and lives as long as the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.packed import Library, register
from adaptome.quantization.formats import Sketch, Uniform


class PackedLinear(nn.Linear):
    """`y = W x + b` with a W in one of our formats.

    Args:
        in_features, out_features, bias: as nn.Linear's.
        form: how the weight lies in its bytes.
        device: of the parameters.
        dtype: of the bias.
        ordered: the columns lie in another order than the inputs (GPTQ's act-order): buffer `order` `[in]`, which input each is.
    """

    order: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        form: Uniform | Sketch | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        ordered: bool = False,
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.form: Uniform | Sketch = form if form is not None else Uniform()
        size = self.form.row_bytes(in_features)
        data = torch.zeros(out_features, size, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(data, requires_grad=False)
        made = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", made)
        self.register_buffer("order", torch.arange(in_features, device=device) if ordered else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = x.index_select(-1, self.order)
        return packed_linear(x, self.weight, self.bias, self.form, self.in_features)

    def extra_repr(self) -> str:
        bias = self._parameters.get("bias") is not None
        order = "" if self.order is None else ", ordered"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self.form}{order}"


def packed_linear(x: Tensor, data: Tensor, bias: Tensor | None, form: Any, fan_in: int) -> Tensor:
    """`x W^T + b` with the W of these bytes; of W nothing is kept for the backward but the bytes."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        W = form.decode(data, fan_in).to(x.dtype)
        return F.linear(x, W, None if bias is None else bias.to(x.dtype))
    y: Tensor = _Packed.apply(x, data, bias, form, fan_in)
    return y


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, data: Tensor, bias: Tensor | None, form: Any, fan_in: int) -> Tensor:
        ctx.form, ctx.fan_in, ctx.dtype = form, fan_in, x.dtype
        ctx.bias = None if bias is None else bias.dtype
        ctx.save_for_backward(data)
        W = form.decode(data, fan_in).to(x.dtype)
        return F.linear(x, W, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (data,) = ctx.saved_tensors
        grad_x = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ ctx.form.decode(data, ctx.fan_in).to(grad.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            grad_b = grad.flatten(0, -2).sum(0).to(ctx.bias)
        return grad_x, None, grad_b, None, None


class Own(Library):
    """The bytes of our own layers."""

    name = "adaptome"

    def fits(self, layer: nn.Module, value: Tensor) -> bool:
        """Whether the value is the bytes of one of our layers."""
        return isinstance(layer, PackedLinear) and value.dtype == torch.uint8

    def shape(self, layer: Any, value: Tensor) -> tuple[int, ...]:
        """Shape of the weight that the value stands for."""
        return (layer.out_features, layer.in_features)

    def dense(self, layer: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The dequantised weight."""
        made: Tensor = layer.form.decode(value.detach(), layer.in_features)
        return (made if layer.order is None else made[:, layer.order.argsort()]).to(dtype)

    def repack(self, layer: Any, value: Tensor, weight: Tensor) -> nn.Parameter:
        """The weight quantised as the value is."""
        weight = weight if layer.order is None else weight[:, layer.order]
        return nn.Parameter(layer.form.encode(weight, old=value.detach()), requires_grad=False)


register(Own())
