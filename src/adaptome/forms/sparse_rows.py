"""`z F^T` with a sparse F `[out, in]` kept row by row: p products a token, and gradients for z and the p numbers alone."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def sparse_product(z: Tensor, c: Tensor, counts: Tensor, columns: Tensor, fan_out: int) -> Tensor:
    """`z F^T` `[*, out]` in z's type.

    Args:
        z: `[*, in]`.
        c: the numbers of F, row by row.
        counts: numbers of each row `[out]`.
        columns: the column of each.
        fan_out: rows of F.
    """
    _beta_told()
    y: Tensor = _Rows.apply(z.reshape(-1, z.shape[-1]), c, counts, columns)
    return y.to(z.dtype).view(*z.shape[:-1], fan_out)


def _matrix(c: Tensor, counts: Tensor, columns: Tensor, fan_in: int) -> Tensor:
    """F, compressed by rows; dense on a CPU whose torch has no library for sparse products."""
    shape = (len(counts), fan_in)
    if c.device.type == "cpu" and not torch.backends.mkl.is_available():
        return c.new_zeros(shape).index_put((_row_numbers(counts), columns.long()), c)
    return torch.sparse_csr_tensor(_ends(counts), columns.long(), c, shape, check_invariants=False)


def _transposed(c: Tensor, counts: Tensor, columns: Tensor, fan_in: int) -> Tensor:
    """F^T, likewise: compressed anew, for products with the transpose of what is compressed by rows are slow."""
    if c.device.type == "cpu" and not torch.backends.mkl.is_available():
        return _matrix(c, counts, columns, fan_in).t()
    order = columns.argsort(stable=True)
    ends = _ends(columns.long().bincount(minlength=fan_in))
    rows = _row_numbers(counts)[order]
    return torch.sparse_csr_tensor(ends, rows, c[order], (fan_in, len(counts)), check_invariants=False)


@functools.cache
def _beta_told() -> None:
    """torch tells once a process that its compressed tensors are new; nothing here that a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), check_invariants=False)


def _ends(counts: Tensor) -> Tensor:
    return F.pad(counts.long().cumsum(0), (1, 0))


def _row_numbers(counts: Tensor) -> Tensor:
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts.long())


class _Rows(torch.autograd.Function):
    """In at least float32, for the sparse libraries have no more and c needs no less."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, c: Tensor, counts: Tensor, columns: Tensor) -> Tensor:
        ctx.exact = torch.promote_types(torch.promote_types(z.dtype, c.dtype), torch.float32)
        ctx.save_for_backward(z, c, counts, columns)
        if z.is_meta:  # no sparse products there
            return z.new_empty(len(z), len(counts), dtype=ctx.exact)
        with torch.autocast(z.device.type, enabled=False):
            matrix = _matrix(c.to(ctx.exact), counts, columns, z.shape[1])
            return (matrix @ z.to(ctx.exact).t()).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, c, counts, columns = ctx.saved_tensors
        if z.is_meta:
            return torch.empty_like(z), torch.empty_like(c), None, None
        values, grad = c.to(ctx.exact), grad.to(ctx.exact)
        grad_z = grad_c = None
        if ctx.needs_input_grad[0]:
            matrix = _transposed(values, counts, columns, z.shape[1])
            grad_z = (matrix @ grad.t()).t().to(z.dtype)
        if ctx.needs_input_grad[1]:
            matrix, zs, left = _matrix(values, counts, columns, z.shape[1]), z.to(ctx.exact), grad.t()
            if matrix.layout == torch.sparse_csr:
                grad_c = torch.sparse.sampled_addmm(matrix, left.contiguous(), zs, beta=0.0).values()
            else:
                grad_c = (left @ zs)[_row_numbers(counts), columns.long()]
            grad_c = grad_c.to(c.dtype)
        return grad_z, grad_c, None, None
