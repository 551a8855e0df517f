"""Triton kernels for 4-bit codes, two to a byte, the even input in the high nibble. Imported where CUDA and Triton are."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: inputs of one program
BLOCK = 256


@triton.jit
def _codes(data, row, row_bytes, column, inside):  # type: ignore[no-untyped-def]
    byte = tl.load(data + row * row_bytes + column // 2, mask=inside, other=0).to(tl.int32)
    return tl.where(column % 2 == 0, byte >> 4, byte & 15)


@triton.jit
def _gather(T, data, W, fan_in, row_bytes, size, tables, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < fan_in
    code = _codes(data, row, row_bytes, column, inside)
    value = tl.load(T + (row * tables + column // size) * 16 + code, mask=inside, other=0.0)
    tl.store(W + row * fan_in + column, value.to(W.dtype.element_ty), mask=inside)


@triton.jit
def _scatter(dW, data, dT, fan_in, row_bytes, size, tables, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    k = tl.arange(0, 16)
    sums = tl.zeros((16,), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        column = group * size + offset
        inside = offset < size
        code = _codes(data, row, row_bytes, column, inside)
        value = tl.load(dW + row * fan_in + column, mask=inside, other=0.0).to(tl.float32)
        sums += tl.sum(tl.where(code[:, None] == k[None, :], value[:, None], 0.0), axis=0)
    tl.store(dT + (row * tables + group) * 16 + k, sums)


def gather(T: Tensor, data: Tensor, fan_in: int, dtype: torch.dtype) -> Tensor:
    """As `tables.gather_rows`, for 4 bits."""
    rows, tables, _ = T.shape
    W = torch.empty(rows, fan_in, dtype=dtype, device=T.device)
    grid: Any = (rows, triton.cdiv(fan_in, BLOCK))
    _gather[grid](T.contiguous(), data, W, fan_in, data.stride(0), fan_in // tables, tables, BLOCK=BLOCK)
    return W


def scatter(dW: Tensor, data: Tensor, shape: torch.Size) -> Tensor:
    """As `tables.scatter_rows`, for 4 bits: one program owns a table, so that the sum has one order."""
    rows, tables, _ = shape
    dT = torch.empty(shape, dtype=torch.float32, device=dW.device)
    fan_in = dW.shape[1]
    _scatter[(rows, tables)](
        dW.contiguous(), data, dT, fan_in, data.stride(0), fan_in // tables, tables, BLOCK=64
    )
    return dT
