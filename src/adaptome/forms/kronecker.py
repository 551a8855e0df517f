"""`dW = C (x) D`: a Kronecker product, applied to the activations factor by factor and never formed in the forward.

With x seen as a matrix X [i1, i2], (C (x) D) x is C X D^T. On a convolution D is a small kernel that runs over each of the i1 groups of
channels; an embedding's column is the outer product of a column of C and one of D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adaptome.core.hosts import ConvHost, Host
from adaptome.forms.delta import Delta


class Kronecker(Delta):
    """Base of adapters whose update is `scale * C (x) D`; subclasses implement `pair`.

    Args:
        host: where it sits.
        scale: of the update.
    """

    def __init__(self, host: Host, scale: float = 1.0):
        # a grouped convolution's rows belong to groups that C would mix
        whole = host.kind != "parameter" and getattr(host.layer, "groups", 1) == 1
        super().__init__(host, fast=host.has_product and whole)
        self.scale = scale

    def pair(self) -> tuple[Tensor, Tensor]:
        """`C [*, o1, i1]` and `D [*, o2, i2]`, with o1 o2 = out and i1 i2 = in."""
        raise TypeError(f"{type(self).__name__} defines no pair.")

    def delta(self) -> Tensor:
        return self.scale * kron(*self.pair())

    def changed(self, name: str, value: Tensor) -> Tensor:
        C, D = self.pair()
        return value + self.scale * kron(C.to(value.dtype), D.to(value.dtype))

    def product(self, x: Tensor) -> Tensor:
        C, D = self.pair()
        if self.host.kind == "embedding":
            i2 = D.shape[1]
            columns = F.embedding(x // i2, C.t())[..., :, None] * F.embedding(x % i2, D.t())[..., None, :]
            return self.scale * columns.flatten(-2)
        C, D = C.to(x.dtype), (self.scale * D).to(x.dtype)
        if isinstance(self.host, ConvHost):
            return _convolved(self.host, x, C, D)
        y: Tensor = _Product.apply(x, C, D)
        return y


def kron(C: Tensor, D: Tensor) -> Tensor:
    """`C (x) D` with leading dimensions, `[*, o1 o2, i1 i2]`."""
    product = C[..., :, None, :, None] * D[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2)


def _convolved(host: ConvHost, x: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """x `[batch, i1 c2, *size]` with D `[o2, c2 * prod(k)]`: the batch takes i1 in."""
    kernel = host.stored("weight").shape[2:]
    if x.dim() == len(kernel) + 1:
        return _convolved(host, x[None], C, D)[0]
    groups = x.reshape(-1, x.shape[1] // C.shape[1], *x.shape[2:])
    z = host.convolve(groups, D.view(D.shape[0], -1, *kernel))
    y = C @ z.reshape(x.shape[0], C.shape[1], -1)
    return y.view(x.shape[0], host.fan_out, *z.shape[2:])


class _Product(torch.autograd.Function):
    """`C X D^T` for every token; saves x, C and D alone, and takes the cheaper of the two orders."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, C: Tensor, D: Tensor) -> Tensor:
        ctx.save_for_backward(x, C, D)
        X = x.reshape(-1, C.shape[1], D.shape[1])
        Y = _each(C, X @ D.t()) if _right_first(C, D) else _each(C, X) @ D.t()
        return Y.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, C, D = ctx.saved_tensors
        X = x.reshape(-1, C.shape[1], D.shape[1])
        G = grad.reshape(-1, C.shape[0], D.shape[0])
        if _right_first(C, D):
            Z, H = X @ D.t(), _each(C.t(), G)
            gC, gD = _outer(G, Z), H.flatten(0, 1).t() @ X.flatten(0, 1)
            return (H @ D).view(x.shape) if ctx.needs_input_grad[0] else None, gC, gD
        Z, H = _each(C, X), G @ D
        gC, gD = _outer(H, X), G.flatten(0, 1).t() @ Z.flatten(0, 1)
        return _each(C.t(), H).view(x.shape) if ctx.needs_input_grad[0] else None, gC, gD


def _each(C: Tensor, X: Tensor) -> Tensor:
    """`C X` for every matrix of a batch."""
    return torch.bmm(C.expand(X.shape[0], *C.shape), X)


def _outer(G: Tensor, Z: Tensor) -> Tensor:
    """`sum_t G_t Z_t^T`. Token by token while the small matrices are no larger than the activations: one product over tokens and
    columns needs both transposed in memory first, which costs several times as much."""
    if G.shape[1] * Z.shape[1] <= max(G[0].numel(), Z[0].numel()):
        return torch.bmm(G, Z.mT).sum(0)
    return torch.einsum("toj,tij->oi", G, Z)


def _right_first(C: Tensor, D: Tensor) -> bool:
    """Whether X D^T comes first: by the multiplications a token takes."""
    (o1, i1), (o2, i2) = C.shape, D.shape
    return i1 * o2 * (i2 + o1) <= o1 * i2 * (i1 + o2)


def divisors(size: int, factor: int = -1) -> tuple[int, int]:
    """Two factors of `size`, the smaller first: `factor` itself where it divides; else as near each other as a first one <= factor lets them be.

    As PEFT's and LyCORIS' `factorization`, so that their checkpoints have the same shapes.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor < 1 else factor
    first = max(d for d in range(1, min(limit, int(size**0.5)) + 1) if size % d == 0)
    return first, size // first
