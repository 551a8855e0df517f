"""From tables to weights and back: a gather and a scatter-add over packed codes.

    gather    W[o, j] = T[o, group of j, code of (o, j)]
    scatter   dT[o, g, k] = sum of dW[o, j] over the j of group g with code k, in float32

On CUDA devices with Triton, 4-bit codes are read where they lie: one program per row and block of inputs. Everywhere else, and for other
numbers of bits, torch's own gather and scatter do the same on unpacked codes.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from adaptome.quantization.bits import unpack


def gather_rows(T: Tensor, data: Tensor, bits: int, fan_in: int, dtype: torch.dtype) -> Tensor:
    """W `[out, in]` of the given type: T `[out, tables, 2^bits]`, data the layer's bytes `[out, row_bytes]`, codes in front."""
    if _fused(T, bits, fan_in):
        return _triton().gather(T, data, fan_in, dtype)
    codes = unpack(data, bits, fan_in).unflatten(-1, (T.shape[1], -1)).long()
    return T.to(dtype).gather(-1, codes).flatten(1)


def scatter_rows(dW: Tensor, data: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """dT of this shape, in at least float32, of dW `[out, in]`."""
    exact = torch.promote_types(dW.dtype, torch.float32)
    if _fused(dW, bits, dW.shape[1]) and exact == torch.float32:
        return _triton().scatter(dW, data, shape)
    codes = unpack(data, bits, dW.shape[1]).unflatten(-1, (shape[1], -1)).long()
    made = torch.zeros(shape, dtype=exact, device=dW.device)
    return made.scatter_add_(-1, codes, dW.to(exact).unflatten(-1, (shape[1], -1)))


def _fused(value: Tensor, bits: int, fan_in: int) -> bool:
    return value.is_cuda and value.dtype != torch.float64 and bits == 4 and fan_in % 2 == 0 and _available()


@functools.cache
def _available() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton() -> Any:
    from adaptome.forms import tables_triton

    return tables_triton
