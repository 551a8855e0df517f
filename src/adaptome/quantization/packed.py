"""Packed weights: parameters that a quantisation library stores in fewer bits than it computes with.

    library        parameter                                    layer
    bitsandbytes   Params4bit (nf4, fp4; scales quantised       Linear4bit, Embedding4bit
                   again or not)
    bitsandbytes   Int8Params                                   Linear8bitLt, Embedding8bit
    torchao        Int8Tensor, IntxUnpackedToInt8Tensor,        any; nn.Linear as a rule
                   Float8Tensor, NF4Tensor, ...
    adaptome       bytes (uniform steps, tables of values)      PackedLinear
    any other      a tensor subclass with its own `dequantize`  the same; read only

Nothing here imports a quantisation library to find out whether a weight is packed; the library is there when its
parameters are. The frozen forward of a packed layer is the library's own and needs none of this: reading
the dense weight is for methods that ask for it, and writing it is for merging.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from adaptome.core.errors import HostError, MergeError
from adaptome.quantization import bnb, layers, torchao

_LIBRARIES = (layers, bnb, torchao)


def is_packed(layer: nn.Module, parameter: str = "weight") -> bool:
    """Whether the layer stores this parameter quantised, or will on its first move to a device."""
    value = layer._parameters.get(parameter)
    return value is not None and (
        any(library.fits(layer, value) for library in _LIBRARIES) or _foreign(value)
    )


def _foreign(value: Tensor) -> bool:
    """Bytes of a format that is not known here: told as packed, so that nobody takes codes for a weight."""
    return not (value.is_floating_point() or value.is_complex()) or (
        value.is_floating_point() and value.element_size() == 1
    )


def dense(layer: nn.Module, parameter: str = "weight", dtype: torch.dtype | None = None) -> Tensor:
    """The weight that the packed parameter stands for.

    Args:
        layer: owner of the parameter.
        parameter: its name.
        dtype: of the result; None for float32, in which codes times scales are exact.

    Returns:
        A new tensor in the layout of the unquantised weight ([out, in] for a linear layer), detached, on the parameter's device.

    Raises:
        HostError: the parameter is not packed, or in a format that is not known.
    """
    value = _value(layer, parameter)
    for library in _LIBRARIES:
        if library.fits(layer, value):
            with torch.no_grad():
                return library.dense(layer, value, dtype or torch.float32)
    raise _unknown(layer, value, parameter)


@torch.no_grad()
def repack(layer: nn.Module, weight: Tensor, parameter: str = "weight") -> nn.Parameter:
    """Quantise a dense weight with the settings of the parameter that the layer has now.

    The layer is not changed: give the result to `install`, and keep the old object, which brings the old bits back.

    Args:
        layer: owner of the packed parameter.
        weight: the new value, in the layout of `dense`.
        parameter: the parameter's name.

    Raises:
        HostError: the parameter is not packed, or in a format that is not known.
        MergeError: its format cannot be written here; says what to do.
    """
    value = _value(layer, parameter)
    if value.device.type == "meta":
        raise MergeError(
            f"{type(layer).__name__}.{parameter} is on the meta device: it has no bits to change; load the model first."
        )
    for library in _LIBRARIES:
        if library.fits(layer, value):
            expected = library.shape(layer, value)
            if tuple(weight.shape) != expected:
                raise MergeError(
                    f"{type(layer).__name__}.{parameter} stands for a weight {list(expected)}, not {list(weight.shape)}."
                )
            return library.repack(layer, value, weight.detach().to(value.device))
    raise _unknown(layer, value, parameter)


def install(layer: nn.Module, value: nn.Parameter | None, parameter: str = "weight") -> None:
    """Put a packed parameter on the layer, together with what its library keeps on the layer beside it.

    Plain ones are put as they are; None takes away the parameter that a merge made.
    """
    for library in _LIBRARIES:
        if value is not None and library.fits(layer, value):
            library.install(layer, value, parameter)
            return
    layer._parameters[parameter] = value


def requantisation_error(layer: nn.Module, weight: Tensor, parameter: str = "weight") -> float:
    """Relative Frobenius distance between the weight that the layer now stands for and the one that was meant."""
    meant = weight.detach().double()
    return float((dense(layer, parameter).double() - meant).norm() / meant.norm().clamp_min(1e-30))


def settle(model: nn.Module) -> None:
    """Keep packed weights from being rewritten by their own forward, as long as adapters are on the model.

    On processors with AVX512-BF16, bitsandbytes repacks a 4-bit weight in place at its first forward in evaluation: the scales are
    rounded to bfloat16, and no gradient passes through the layer any more. Training after an evaluation would then be silently cut off.

    Layers that torchao runs on quantised activations never pass a gradient on. Nothing can be done about it here but
    to warn, once a model.
    """
    deaf = []
    for name, module in model.named_modules():
        bnb.settle(module)
        deaf += [
            name or "the root"
            for value in module._parameters.values()
            if value is not None and torchao.stops_gradients(value)
        ]
    if deaf:
        shown = ", ".join(deaf[:3]) + (f" and {len(deaf) - 3} more" if len(deaf) > 3 else "")
        warnings.warn(
            f"{shown}: torchao quantises the activations of these layers and passes no gradient to their inputs, so adapters below them would "
            "train on wrong gradients. Inference is as it should be; to train, quantise weights only (Int8WeightOnlyConfig, IntxWeightOnlyConfig).",
            stacklevel=4,
        )


def release(model: nn.Module) -> None:
    """Undo `settle`."""
    for module in model.modules():
        bnb.release(module)


def _value(layer: nn.Module, parameter: str) -> Tensor:
    value = layer._parameters.get(parameter)
    if value is None:
        own = [k for k, v in layer._parameters.items() if v is not None]
        raise HostError(f"{type(layer).__name__} has no parameter {parameter!r}; it has {own}.")
    return value


def _unknown(layer: nn.Module, value: Tensor, parameter: str) -> HostError:
    what = f"{type(layer).__module__}.{type(layer).__name__}.{parameter} is a {value.dtype} {type(value).__name__}"
    if not _foreign(value):
        return HostError(f"{what}: it is not packed; read and write it as it is.")
    return HostError(
        f"{what}, packed in a format that adaptome cannot read; known are bitsandbytes', torchao's and adaptome's own.\n"
        "  Choose a method that does not ask for the dense weight, such as lora, or load the model unquantised."
    )
