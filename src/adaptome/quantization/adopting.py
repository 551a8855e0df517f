"""Layers of other libraries that keep no `weight` parameter, put into our format: what an adapter needs to sit on them.

    HQQ          HQQLinear                 W_q and meta; w = (q - z) s with a real z, groups along the inputs (axis 1)
    GPTQModel    TorchLinear, TritonV2Linear; AutoGPTQ's QuantLinear: qweight, qzeros, scales, g_idx in the files' own order
    AWQ          GPTQModel's AwqTorchLinear, AutoAWQ's WQLinear_GEMM: qweight, qzeros, scales

Kernels that reorder the codes (Marlin, ExLlama, ...) are refused: load the model for the torch backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import packed
from adaptome.core.errors import HostError, StateError
from adaptome.core.state import STATE
from adaptome.quantization.checkpoints import layer_of
from adaptome.quantization.formats import Uniform, Values
from adaptome.quantization.quantizing import describe_layers
from adaptome.quantization.stored import Rows, from_awq, from_gptq


def adopt(model: nn.Module) -> tuple[str, ...]:
    """Replace the layers of HQQ, GPTQModel, AutoGPTQ and AutoAWQ by ours with the same weights, in place, so that every method can be put on them.

    The layers then run by torch, on every device, and no longer by their library's kernels.

    Args:
        model: without adapters.

    Returns:
        The layers' names.

    Raises:
        StateError: adapters are attached.
        HostError: there is no such layer, or one whose codes lie in the order of a kernel.
    """
    if STATE in model.__dict__:
        raise StateError("adapters are attached.\n  Adopt the layers first, then attach.")
    found = [(name, m) for name, m in model.named_modules() if packed.is_strange(m)]
    if not found:
        raise HostError(
            f"{type(model).__name__} has no layer of HQQ, GPTQModel, AutoGPTQ or AutoAWQ.\n  Other quantised layers take adapters as they are."
        )
    made = {}
    for name, layer in found:
        reader = _READERS.get(type(layer).__name__)
        if reader is None:
            raise HostError(
                f"{name or 'the root'} is a {type(layer).__name__}: its codes may lie in the order of its kernel. Read are {', '.join(_READERS)}.\n"
                "  Load the model for the torch backend (GPTQConfig(backend='torch')), or without GPTQModel installed."
            )
        made[name] = reader(name, layer)
    for name, layer in made.items():
        model.set_submodule(name, layer)
    describe_layers(model)
    return tuple(made)


def _gptq(name: str, layer: Any) -> nn.Module:
    """GPTQModel keeps zero points as version 2 in memory where the kernel wants that; AutoGPTQ as version 1."""
    version = layer.qzero_format() if hasattr(layer, "qzero_format") else 1
    group = getattr(layer, "group_size", -1)
    rows = from_gptq(layer.qweight, layer.qzeros, layer.scales, layer.g_idx, layer.bits, group, version)
    return layer_of(rows, layer.in_features, layer.bias)


def _awq(name: str, layer: Any) -> nn.Module:
    bits = layer.bits if hasattr(layer, "bits") else layer.w_bit
    rows = from_awq(layer.qweight, layer.qzeros, layer.scales, bits, layer.group_size)
    return layer_of(rows, layer.in_features, layer.bias)


@torch.no_grad()
def _hqq(name: str, layer: Any) -> nn.Module:
    meta = layer.meta
    if meta["axis"] != 1 or (meta.get("group_size") is not None and layer.in_features % meta["group_size"]):
        raise HostError(
            f"{name} is an HQQLinear whose groups run over rows (axis {meta['axis']}): our rows have groups along the inputs.\n  Quantise with axis=1."
        )
    W, s, z = layer.dequantize().float(), meta["scale"].float(), meta["zero"].float()
    group = meta.get("group_size") or layer.in_features
    s, z = (v.reshape(layer.out_features, -1) for v in (s, z))
    half = 2 ** (meta["nbits"] - 1)
    b = (half - z) * s
    form = Uniform(meta["nbits"], _values(s, b), group, "float")
    rows = Rows(form, form.write(form.nearest(W, s, b), s, b))
    return layer_of(rows, layer.in_features, layer.bias)


def _values(*tensors: Tensor) -> Values:
    """Half precision where that loses nothing."""
    return "float16" if all(torch.equal(t.half().float(), t) for t in tensors) else "float32"


_READERS: dict[str, Callable[[str, Any], nn.Module]] = {
    "HQQLinear": _hqq,
    "TorchLinear": _gptq,
    "TritonV2Linear": _gptq,
    "TorchQuantLinear": _gptq,
    "TritonV2QuantLinear": _gptq,
    "QuantLinear": _gptq,
    "AwqTorchLinear": _awq,
    "AwqTorchQuantLinear": _awq,
    "WQLinear_GEMM": _awq,
}
