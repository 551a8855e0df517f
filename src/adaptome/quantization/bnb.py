"""bitsandbytes' parameters: 4-bit blocks (nf4, fp4) and 8-bit rows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import MergeError
from adaptome.core.packed import Library, register

_FLAG, _REMEMBERED = "support_avx512bf16_for_cpu", "_bnb_cpu_packing"


class BitsAndBytes(Library):
    """4-bit blocks and 8-bit rows."""

    name = "bitsandbytes"

    def fits(self, layer: nn.Module, value: Tensor) -> bool:
        """Whether the value is one of this library's parameters."""
        return _kind(layer, value) is not None

    def shape(self, layer: nn.Module, value: Tensor) -> tuple[int, ...]:
        """Shape of the weight that the value stands for."""
        state = _state(layer, value) if _kind(layer, value) == "Params4bit" else None
        return tuple(value.shape if state is None else state.shape)

    def dense(self, layer: nn.Module, value: Any, dtype: torch.dtype) -> Tensor:
        """The dequantised weight; of a layer that is not quantised yet, a copy of its weight."""
        if _kind(layer, value) == "Int8Params":
            codes, scales = _rows(layer, value)
            if codes is None or scales is None:
                return value.detach().to(dtype, copy=True)
            return (codes.float() * (scales.float().unsqueeze(1) * (1.0 / 127.0))).to(dtype)
        state = _state(layer, value)
        if state is None:
            return value.detach().to(dtype, copy=True)
        from bitsandbytes.functional import dequantize_4bit

        data, state = _plain(value.data, copy.copy(state))
        state.dtype = torch.float32
        return dequantize_4bit(data, state).to(dtype)

    def repack(self, layer: nn.Module, value: Any, weight: Tensor) -> nn.Parameter:
        """The weight quantised as the value is."""
        return (
            _repack_8bit(layer, value, weight)
            if _kind(layer, value) == "Int8Params"
            else _repack_4bit(layer, value, weight)
        )

    def install(self, layer: nn.Module, value: nn.Parameter, parameter: str) -> None:
        """Put the value on the layer and set the copy of its statistics that the layer keeps."""
        if _kind(layer, value) == "Params4bit":
            layer._parameters[parameter] = value
            if "quant_state" in layer.__dict__:
                layer.__dict__["quant_state"] = getattr(value, "quant_state", None)
            return
        state: Any = getattr(layer, "state", None)
        old: Any = layer._parameters.get(parameter)
        if state is not None:
            # The first forward moves the statistics from the parameter to the layer. The old parameter takes its own along, so that
            # it can come back; the new one brings its own.
            if old is not None and getattr(old, "CB", None) is None and state.CB is not None:
                old.CB, old.SCB = state.CB, state.SCB
            state.reset_grads()
        layer._parameters[parameter] = value

    def settle(self, layer: nn.Module) -> None:
        """Keep a 4-bit layer in the common layout: bring it back if need be, and switch the repacking off."""
        if not layer.__dict__.get(_FLAG):
            return
        layer.__dict__[_REMEMBERED] = layer.__dict__[_FLAG]
        layer.__dict__[_FLAG] = False
        value: Any = layer._parameters.get("weight")
        state = getattr(value, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            value.data, value.quant_state = _plain(value.data, copy.copy(state))
            if layer.__dict__.get("quant_state") is state:
                layer.__dict__["quant_state"] = value.quant_state

    def release(self, layer: nn.Module) -> None:
        """Undo `settle`; a layout that was changed for good before is not changed back."""
        if _REMEMBERED in layer.__dict__:
            layer.__dict__[_FLAG] = layer.__dict__.pop(_REMEMBERED)


register(BitsAndBytes())


def _kind(layer: nn.Module, value: Tensor) -> str | None:
    """'Params4bit', 'Int8Params' or None; by name, so that the library need not be imported."""
    for cls in type(value).__mro__:
        if cls.__name__ in ("Params4bit", "Int8Params") and cls.__module__.startswith("bitsandbytes"):
            return cls.__name__
    # FSDP makes plain parameters of them; the layer then still knows the 4-bit state.
    lost = not value.is_floating_point() and getattr(layer, "quant_state", None) is not None
    return "Params4bit" if lost else None


def _repack_4bit(layer: nn.Module, value: Any, weight: Tensor) -> nn.Parameter:
    from bitsandbytes.nn import Params4bit

    state = _state(layer, value)
    if state is None:  # to be quantised at its first move to a device, with the settings it carries
        settings = {
            k: getattr(value, k) for k in ("blocksize", "compress_statistics", "quant_type", "quant_storage")
        }
        return Params4bit(weight.to(value.dtype), requires_grad=False, **settings)
    nested = (
        getattr(state, "original_nested", state.nested)
        if getattr(state, "packing_format_for_cpu", False)
        else state.nested
    )
    dtype = state.original_dtype if getattr(state, "packing_format_for_cpu", False) else state.dtype
    made: Any = Params4bit(
        weight.to(torch.float32).contiguous(),
        requires_grad=False,
        blocksize=state.blocksize,
        compress_statistics=nested,
        quant_type=state.quant_type,
        quant_storage=getattr(value, "quant_storage", value.dtype),
    )
    made = made.to(value.device)
    made.quant_state.dtype = dtype  # quantised from float32, but dequantised to what it was before
    return made


def _repack_8bit(layer: nn.Module, value: Any, weight: Tensor) -> nn.Parameter:
    from bitsandbytes.functional import int8_vectorwise_quant
    from bitsandbytes.nn import Int8Params

    codes, scales = _rows(layer, value)
    if codes is None or scales is None:
        return Int8Params(
            weight.to(value.dtype), requires_grad=value.requires_grad, has_fp16_weights=value.has_fp16_weights
        )
    half = weight.to(torch.float16)
    if not torch.isfinite(half).all():
        raise MergeError(
            f"{type(layer).__name__}: the merged weight reaches {float(weight.abs().max()):.3g}, beyond float16, through which bitsandbytes quantises to 8 bits.\n"
            "  Merge into the full-precision base, or keep the adapter attached."
        )
    codes, scales, _ = int8_vectorwise_quant(half.contiguous())
    return Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)


def _plain(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Data and state in the common layout; `state` may be changed.

    The way back takes the rounded scales as they are: what the layer computes stays the same.
    """
    if not getattr(state, "packing_format_for_cpu", False):
        return data, state
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state.original_nested = False
    dtype, state.original_dtype = state.original_dtype, torch.float32
    data, state = _convert_weight_packed_for_cpu_inverse(data, state)
    state.dtype = dtype
    return data, state


def _state(layer: nn.Module, value: Any) -> Any:
    """The 4-bit quantisation state; None before quantisation."""
    own = getattr(value, "quant_state", None)
    return own if own is not None or value.is_floating_point() else getattr(layer, "quant_state", None)


def _rows(layer: nn.Module, value: Any) -> tuple[Tensor | None, Tensor | None]:
    """Codes [out, in] and row scales [out] of an 8-bit weight: on the parameter, or on the layer after its first forward."""
    if value.has_fp16_weights:
        return None, None
    if value.SCB is not None:
        return (value.CB if value.CB is not None else value.data), value.SCB
    state = getattr(layer, "state", None)
    return (state.CB, state.SCB) if state is not None else (None, None)
