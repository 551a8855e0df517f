"""torchao's tensor subclasses, and every other one that can dequantise itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import MergeError
from adaptome.core.packed import Library, register


class TorchAO(Library):
    """Its tensor subclasses, and any that has its own `dequantize`."""

    name, generic = "torchao", True
    weights_only = "Int8WeightOnlyConfig, IntxWeightOnlyConfig"

    def fits(self, layer: nn.Module, value: Tensor) -> bool:
        """Whether the value is a quantised tensor subclass."""
        cls = type(value)
        # asked of the class: under torch.compile the value itself answers as a plain tensor
        if cls in (Tensor, nn.Parameter) or not hasattr(cls, "__tensor_flatten__"):
            return False
        known = cls.__name__ in _READERS or cls.__module__.startswith("torchao.")
        return known or (not cls.__module__.startswith("torch.") and cls.dequantize is not Tensor.dequantize)

    def dense(self, layer: nn.Module, value: Any, dtype: torch.dtype) -> Tensor:
        """The dequantised weight, with the scale of the inputs that some formats (AWQ, SmoothQuant) keep beside it."""
        reader = _READERS.get(type(value).__name__)
        if reader is not None:
            weight = reader(value)
        elif type(value).dequantize is not Tensor.dequantize:
            weight = value.dequantize()
        else:
            # No dequantisation is offered: what the format's own product makes of the identity is the weight.
            weight = (
                F.linear(torch.eye(value.shape[-1], dtype=value.dtype, device=value.device), value)
                .t()
                .contiguous()
            )
            return weight.to(dtype)
        scale = getattr(value, "act_pre_scale", None)
        return weight.to(dtype) if scale is None else weight.to(dtype) * scale.to(dtype)

    def repack(self, layer: nn.Module, value: Any, weight: Tensor) -> nn.Parameter:
        """The weight quantised as the value is."""
        writer = _WRITERS.get(type(value).__name__)
        if writer is None:
            raise MergeError(
                f"{type(layer).__name__}: no way is known to quantise a weight to {type(value).__module__}.{type(value).__name__} again; known: {', '.join(_WRITERS)}.\n"
                "  Merge into the full-precision base and quantise that, or keep the adapter attached."
            )
        scale = getattr(value, "act_pre_scale", None)
        weight = weight.float() if scale is None else weight.float() / scale.float()
        return nn.Parameter(writer(value, weight.to(value.dtype).contiguous()), requires_grad=False)

    def stops_gradients(self, value: Tensor) -> bool:
        """Whether the format quantises activations too, by operations that have no gradient."""
        settings = ("act_quant_kwargs", "activation_quantization")
        return self.fits(nn.Module(), value) and any(
            getattr(value, name, None) is not None for name in settings
        )


register(TorchAO())


# -- reading -------------------------------------------------------------------------------------------------------

_READERS: dict[str, Callable[[Any], Tensor]] = {
    "NF4Tensor": lambda value: value.get_original_weight(),
    "Int8Tensor": lambda value: value.dequantize(torch.float32),
    "Float8Tensor": lambda value: value.dequantize(torch.float32),
}


# -- writing -------------------------------------------------------------------------------------------------------


def _granularity(value: Any) -> Any:
    """torchao's name for the block size of a weight."""
    from torchao.quantization import PerGroup, PerRow, PerTensor

    block, size = tuple(value.block_size), tuple(value.shape)
    if block == size:
        return PerTensor()
    if block == (*[1] * (len(size) - 1), size[-1]):
        return PerRow()
    if all(b == 1 for b in block[:-1]):
        return PerGroup(block[-1])
    raise MergeError(
        f"{type(value).__name__} with blocks of {list(block)} on a weight {list(size)}: no such granularity is known.\n  Keep the adapter attached, or merge into the full-precision base."
    )


def _mapping(value: Any) -> Any:
    """Symmetric unless a zero point was used."""
    from torchao.quantization import MappingType

    zero = value.zero_point
    return MappingType.SYMMETRIC if zero is None or not bool(zero.count_nonzero()) else MappingType.ASYMMETRIC


def _int8(value: Any, weight: Tensor) -> Tensor:
    kept = ("act_quant_kwargs", "act_quant_scale", "act_quant_zero_point", "act_pre_scale", "reduce_range")
    return type(value).from_hp(
        weight,
        _granularity(value),
        _mapping(value),
        **{k: getattr(value, k) for k in kept if hasattr(value, k)},
    )


def _intx(value: Any, weight: Tensor) -> Tensor:
    """Each block keeps its old scale where that fits the new weight better.

    Symmetric codes reach from -8 to 7 and their scale is a 7.5th of the largest weight: quantising even an unchanged
    weight again would shrink every block whose largest weight is positive.
    """
    settings = {
        "block_size": value.block_size,
        "target_dtype": value.target_dtype,
        "activation_quantization": value.activation_quantization,
    }
    fresh = type(value).from_hp(weight, mapping_type=_mapping(value), **settings)

    def with_scales(scale: Tensor, zero: Tensor) -> Any:
        return type(value).from_hp(
            weight, intx_choose_qparams_algorithm=None, custom_scale=scale, custom_zero_point=zero, **settings
        )

    better = _block_error(with_scales(value.scale, value.zero_point), weight) < _block_error(fresh, weight)
    return with_scales(
        torch.where(better, value.scale, fresh.scale), torch.where(better, value.zero_point, fresh.zero_point)
    )


def _block_error(value: Any, weight: Tensor) -> Tensor:
    """Squared error of every block: a tensor of the scales' shape."""
    error = (value.dequantize().float() - weight.float()).square()
    for dim, size in enumerate(value.block_size):
        error = error.unflatten(dim, (-1, size)).sum(dim + 1)
    return error


def _float8(value: Any, weight: Tensor) -> Tensor:
    kept = ("mm_config", "kernel_preference", "act_quant_kwargs")
    return type(value).from_hp(
        weight,
        value.qdata.dtype,
        _granularity(value),
        **{k: getattr(value, k) for k in kept if hasattr(value, k)},
    )


def _nf4(value: Any, weight: Tensor) -> Tensor:
    return type(value).from_tensor(weight, value.block_size, value.scaler_block_size)


_WRITERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _intx,
    "Float8Tensor": _float8,
    "NF4Tensor": _nf4,
}
