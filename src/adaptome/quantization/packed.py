"""Packed weights: telling, unpacking and packing again the layers of bitsandbytes and torchao."""

from __future__ import annotations

from torch import Tensor, nn

from adaptome.core.errors import MergeError


def is_packed(layer: nn.Module, parameter: str = "weight") -> bool:
    """Whether the parameter is stored quantised."""
    value = layer._parameters.get(parameter)
    return value is not None and (
        not value.is_floating_point()
        or (
            type(value.data) is not Tensor
            and hasattr(value.data, "dequantize")
            and "torchao" in type(value.data).__module__
        )
    )


def dense(layer: nn.Module, parameter: str = "weight") -> Tensor:
    """The parameter dequantised, [out, in]."""
    value = layer._parameters[parameter]
    assert value is not None
    if hasattr(value, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(value.data, value.quant_state)
    return value.detach().dequantize()


def repack(layer: nn.Module, weight: Tensor, parameter: str = "weight") -> nn.Parameter:
    """The dense weight quantised as the layer's is."""
    raise MergeError(
        f"{type(layer).__name__} cannot be quantised again here; dequantise the model first, or keep the adapter attached."
    )


def requantisation_error(layer: nn.Module, weight: Tensor) -> float:
    """Relative Frobenius error of the packed weight against the dense one."""
    return float((dense(layer) - weight).norm() / weight.norm())
