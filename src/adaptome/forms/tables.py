"""From tables to weights and back: a gather and a scatter-add over packed codes.

    gather    W[o, j] = T[o, group of j, code of (o, j)]
    scatter   dT[o, g, k] = sum of dW[o, j] over the j of group g with code k, in float32

On CUDA devices with Triton, 4-bit codes are read where they lie: one program per row and block of inputs. Everywhere else, and for other
numbers of bits, torch's own gather and scatter do the same on unpacked codes. The kernels are tested by Triton's interpreter; on a device they are
held to torch's answer at their first use, and left alone with a warning where they differ.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

from adaptome.quantization.bits import unpack


def gather_rows(T: Tensor, data: Tensor, bits: int, fan_in: int, dtype: torch.dtype) -> Tensor:
    """W `[out, in]` of the given type: T `[out, tables, 2^bits]`, data the layer's bytes `[out, row_bytes]`, codes in front."""
    if _fits(T, bits, fan_in) and (kernels := _kernels(T.device)) is not None:
        W: Tensor = kernels.gather(T, data, fan_in, dtype)
        return W
    return _gathered(T, data, bits, fan_in, dtype)


def scatter_rows(dW: Tensor, data: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """dT of this shape, in at least float32, of dW `[out, in]`."""
    if _fits(dW, bits, dW.shape[1]) and (kernels := _kernels(dW.device)) is not None:
        dT: Tensor = kernels.scatter(dW, data, shape)
        return dT
    return _scattered(dW, data, bits, shape)


def _gathered(T: Tensor, data: Tensor, bits: int, fan_in: int, dtype: torch.dtype) -> Tensor:
    codes = unpack(data, bits, fan_in).unflatten(-1, (T.shape[1], -1)).long()
    return T.to(dtype).gather(-1, codes).flatten(1)


def _scattered(dW: Tensor, data: Tensor, bits: int, shape: torch.Size) -> Tensor:
    exact = torch.promote_types(dW.dtype, torch.float32)
    codes = unpack(data, bits, dW.shape[1]).unflatten(-1, (shape[1], -1)).long()
    made = torch.zeros(shape, dtype=exact, device=dW.device)
    return made.scatter_add_(-1, codes, dW.to(exact).unflatten(-1, (shape[1], -1)))


def _fits(value: Tensor, bits: int, fan_in: int) -> bool:
    return value.is_cuda and value.dtype != torch.float64 and bits == 4 and fan_in % 2 == 0


@functools.cache
def _kernels(device: torch.device) -> Any:
    """Triton's kernels where they are to be had and right on this device, else None."""
    if importlib.util.find_spec("triton") is None:
        return None
    from adaptome.forms import tables_triton

    if agrees(tables_triton, device):
        return tables_triton
    warnings.warn(
        f"the Triton kernels for 4-bit tables give other results than torch on {device}: torch's own are used, which are slower.",
        stacklevel=3,
    )
    return None


@torch.no_grad()
def agrees(kernels: Any, device: torch.device) -> bool:
    """Whether kernels gather and scatter as torch does, on a small example."""
    generator = torch.Generator().manual_seed(0)
    T = torch.randn(3, 2, 16, generator=generator).to(device)
    data = torch.randint(256, (3, 300), generator=generator, dtype=torch.uint8).to(device)
    dW = torch.randn(3, 600, generator=generator).to(device)
    same = torch.equal(kernels.gather(T, data, 600, torch.float32), _gathered(T, data, 4, 600, torch.float32))
    sums = kernels.scatter(dW, data, T.shape), _scattered(dW, data, 4, T.shape)
    return same and torch.allclose(*sums, rtol=1e-4, atol=1e-4)
