"""Packed weights: parameters that a quantisation library stores in fewer bits than it computes with.

A `Library` says how its parameters are read and written; it is registered, and found as methods are. Those here, in
`adaptome.quantization`:

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
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core.discovery import discover
from adaptome.core.errors import HostError, MergeError


class Library(ABC):
    """How one library stores weights in few bits. Register one instance: `register(Mine())`.

    `layer` is the parameter's owner, `value` the parameter; a weight is dense, in the layout of the unquantised one.
    """

    #: the library, as messages call it
    name: ClassVar[str]
    #: whether it takes what no other one knows; asked last then
    generic: ClassVar[bool] = False
    #: settings of the library that leave activations alone, for where `stops_gradients` holds
    weights_only: ClassVar[str] = ""

    @abstractmethod
    def fits(self, layer: nn.Module, value: Tensor) -> bool:
        """Whether the value is one of this library's parameters."""

    def shape(self, layer: nn.Module, value: Tensor) -> tuple[int, ...]:
        """Shape of the weight that the value stands for."""
        return tuple(value.shape)

    @abstractmethod
    def dense(self, layer: nn.Module, value: Any, dtype: torch.dtype) -> Tensor:
        """The dequantised weight, a new tensor."""

    def repack(self, layer: nn.Module, value: Any, weight: Tensor) -> nn.Parameter:
        """The weight quantised as the value is; MergeError where that cannot be."""
        raise MergeError(
            f"{type(layer).__name__}: {self.name} has no way here to quantise a weight again.\n"
            "  Merge into the full-precision base and quantise that, or keep the adapter attached."
        )

    def install(self, layer: nn.Module, value: nn.Parameter, parameter: str) -> None:
        """Put the value on the layer, with what the library keeps beside it."""
        layer._parameters[parameter] = value

    def settle(self, layer: nn.Module) -> None:  # noqa: B027  # most need nothing
        """Keep the layer from rewriting its weight while adapters are on the model."""

    def release(self, layer: nn.Module) -> None:  # noqa: B027
        """Undo `settle`."""

    def stops_gradients(self, value: Tensor) -> bool:
        """Whether layers with this value pass no gradient to their inputs."""
        return False


_LIBRARIES: list[Library] = []


def register(found: Library) -> None:
    """Add a library."""
    _LIBRARIES.append(found)
    _LIBRARIES.sort(key=lambda known: known.generic)


def libraries() -> list[Library]:
    """Every registered library, generic ones last."""
    discover("quantization")
    return _LIBRARIES


def _library_of(layer: nn.Module, value: Tensor) -> Library | None:
    return next((known for known in libraries() if known.fits(layer, value)), None)


def is_packed(layer: nn.Module, parameter: str = "weight") -> bool:
    """Whether the layer stores this parameter quantised, or will on its first move to a device."""
    value = layer._parameters.get(parameter)
    return value is not None and (_library_of(layer, value) is not None or _foreign(value))


def is_strange(layer: nn.Module) -> bool:
    """Whether it is a quantised layer without a parameter `weight`: HQQ's, GPTQModel's, AutoGPTQ's or AutoAWQ's."""
    own = layer._parameters.keys() | layer._buffers.keys()
    return "weight" not in own and ("W_q" in own or {"qweight", "scales"} <= own)


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
    known = _library_of(layer, value)
    if known is None:
        raise _unknown(layer, value, parameter)
    with torch.no_grad():
        return known.dense(layer, value, dtype or torch.float32)


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
    known = _library_of(layer, value)
    if known is None:
        raise _unknown(layer, value, parameter)
    expected = known.shape(layer, value)
    if tuple(weight.shape) != expected:
        raise MergeError(
            f"{type(layer).__name__}.{parameter} stands for a weight {list(expected)}, not {list(weight.shape)}."
        )
    return known.repack(layer, value, weight.detach().to(value.device))


def install(layer: nn.Module, value: nn.Parameter | None, parameter: str = "weight") -> None:
    """Put a packed parameter on the layer, together with what its library keeps on the layer beside it.

    Plain ones are put as they are; None takes away the parameter that a merge made.
    """
    known = None if value is None else _library_of(layer, value)
    if known is None or value is None:
        layer._parameters[parameter] = value
    else:
        known.install(layer, value, parameter)


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
    for known in libraries():
        deaf = []
        for name, module in model.named_modules():
            known.settle(module)
            values = [value for value in module._parameters.values() if value is not None]
            deaf += [name or "the root" for value in values if known.stops_gradients(value)]
        if deaf:
            shown = ", ".join(deaf[:3]) + (f" and {len(deaf) - 3} more" if len(deaf) > 3 else "")
            warnings.warn(
                f"{shown}: {known.name} quantises the activations of these layers and passes no gradient to their inputs, so adapters below them would "
                f"train on wrong gradients. Inference is as it should be; to train, quantise weights only ({known.weights_only}).",
                stacklevel=4,
            )


def release(model: nn.Module) -> None:
    """Undo `settle`."""
    for known in libraries():
        for module in model.modules():
            known.release(module)


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
        f"{what}, packed in a format that adaptome cannot read; known are those of {' and '.join(known.name for known in libraries())}.\n"
        "  Choose a method that does not ask for the dense weight, such as lora, or load the model unquantised."
    )
