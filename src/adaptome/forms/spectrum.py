"""`dW = s F_out^T S F_in`: an update that is sparse in a frequency basis, with a few entries of S trained.

F is a real transform that an FFT computes: the orthonormal DCT, or the real and imaginary parts of the DFT. Two forms of a linear layer:
through the activations, F_out^T (S (F_in x)), at in + out elements of transforms and n entries of S a token; or with dW formed by FFT, and
again in the backward, at nothing more a token but in out products for the gradient of dW. An element of a transform costs about 512,
an entry of S about 16 multiplications of a matrix product (measured, forward and backward), so the second is taken while
in out <= 512 (in + out) + 16 n and the call has many tokens. Both keep x alone for the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.forms.delta import Delta, run_changed

#: what an entry of S, or an element of a transform, costs in multiplications of a matrix product
ENTRY, TRANSFORM = 16, 512
#: tokens from which forming dW can pay
MANY = 128
#: numbers that the gathered rows of the product may hold at a time
CHUNK = 1 << 24


class Basis(NamedTuple):
    """F and its transpose along the last dimension, and the length of F x."""

    analyse: Callable[[Tensor], Tensor]
    synthesise: Callable[[Tensor, int], Tensor]
    length: Callable[[int], int]


class SparseSpectrum(Delta):
    """Base of adapters whose update is sparse in a basis; subclasses set `basis` and implement `entries` and `delta`.

    Args:
        host: where it sits.
        scale: s.
        count: entries of S.
        shared: the method's state that all its adapters use.
    """

    #: F
    basis: ClassVar[Basis]

    def __init__(self, host: Host, scale: float, count: int, shared: nn.Module | None = None):
        super().__init__(host, host.kind == "linear", shared)
        self.scale = scale
        sides = host.fan_in + host.fan_out
        self.small = host.fan_in * host.fan_out <= ENTRY * count + TRANSFORM * sides

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values of S, for the product; rows and columns that are trained are floats, to be rounded."""
        raise TypeError(f"{type(self).__name__} defines no entries.")

    def forms(self, tokens: int) -> bool:
        """Whether the forward forms dW for a call of so many tokens."""
        return self.small and tokens > MANY and not self.host.packed

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.forms(x.numel() // x.shape[-1]):
            return run_changed(self, frozen, x)
        return super().forward(frozen, x, *args, **kwargs)

    def product(self, x: Tensor) -> Tensor:
        rows, columns, values = self.entries()
        y: Tensor = _Product.apply(x, values * self.scale, rows, columns, self.host.fan_out, self.basis)
        return y


class _Product(torch.autograd.Function):
    """`F_out^T (S (F_in x))`, saving x and the entries."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, out: int, basis: Basis
    ) -> Tensor:
        ctx.basis = basis
        p, q = cells(rows), cells(columns)
        ctx.save_for_backward(x, values, p, q)
        s = _spread(_columns(basis, x, values), q, p, values, basis.length(out))
        return basis.synthesise(s.t(), out).to(x.dtype).view(*x.shape[:-1], out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, values, p, q = ctx.saved_tensors
        G, X = _columns(ctx.basis, grad, values), _columns(ctx.basis, x, values)
        size = max(1, CHUNK // len(p))

        def at(row: Tensor, column: Tensor) -> Tensor:
            """The gradient of entries of S: `sum_t (F g_t)[row] (F x_t)[column]`."""
            row, column = row.clamp(0, len(G) - 1), column.clamp(0, len(X) - 1)
            pairs = zip(G.split(size, 1), X.split(size, 1), strict=True)
            return torch.stack([(g[row] * z[column]).sum(1) for g, z in pairs]).sum(0)

        gx = None
        if ctx.needs_input_grad[0]:
            s = _spread(G, p, q, values, len(X))
            gx = ctx.basis.synthesise(s.t(), x.shape[-1]).to(x.dtype).view(x.shape)
        places = moves(values, p, q, at) if any(ctx.needs_input_grad[2:4]) else (None, None)
        return gx, at(p, q), *places, None, None


def cells(coordinates: Tensor) -> Tensor:
    """Coordinates as indices: integers as they are, floats rounded."""
    return coordinates.round().long() if coordinates.is_floating_point() else coordinates


def moves(
    values: Tensor, p: Tensor, q: Tensor, at: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The gradients of the places of entries, straight through the rounding: central differences over the neighbouring cells, in [-1, 1]."""
    of_row = values * (at(p + 1, q) - at(p - 1, q)) / 2
    of_column = values * (at(p, q + 1) - at(p, q - 1)) / 2
    return of_row.clamp(-1, 1), of_column.clamp(-1, 1)


def _columns(basis: Basis, x: Tensor, values: Tensor) -> Tensor:
    """`F x`, a column a token: entries are then rows, that lie together."""
    return basis.analyse(x.flatten(0, -2).to(values.dtype)).t().contiguous()


def _spread(X: Tensor, source: Tensor, target: Tensor, values: Tensor, length: int) -> Tensor:
    """`S X` from its entries, `[length, tokens]`."""
    parts = X.split(max(1, CHUNK // len(source)), 1)
    return torch.cat(
        [
            part.new_zeros(length, part.shape[1]).index_add_(0, target, part[source] * values[:, None])
            for part in parts
        ],
        1,
    )


# -- the cosine transform -----------------------------------------------------------------------------------------


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last dimension, by one real FFT (Makhoul 1980)."""
    N = x.shape[-1]
    Z = torch.fft.rfft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)) * _twiddle(N, x)
    return torch.cat([Z.real, -Z.imag[..., 1 : (N + 1) // 2].flip(-1)], -1) * _norm(N, x)


def idct(X: Tensor, N: int) -> Tensor:
    """The inverse of `dct`, which is its transpose."""
    a = X / _norm(N, X)
    half = N // 2 + 1
    imaginary = torch.cat([torch.zeros_like(a[..., :1]), -a[..., N - half + 1 :].flip(-1)], -1)
    v = torch.fft.irfft(torch.complex(a[..., :half], imaginary) * _twiddle(N, X).conj(), n=N)
    even, odd = v[..., : (N + 1) // 2], v[..., (N + 1) // 2 :].flip(-1)
    paired = torch.stack([even[..., : N // 2], odd], -1).flatten(-2)
    return torch.cat([paired, even[..., N // 2 :]], -1)


class CosineMatrix(torch.autograd.Function):
    """`C^T S D` `[*, out, in]` from the entries of S `[*, n]`, by one real 2-D FFT; and one in the backward, read at the entries alone.

    A product of two cosines is the mean of two waves, `cos(A + B)` and `cos(A - B)`: on the folded grid of Makhoul (1980) each is one
    frequency, with a phase.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, columns: Tensor, out: int, width: int) -> Tensor:
        p, q = cells(rows), cells(columns)
        ctx.save_for_backward(values, p, q)
        lead, half = values.shape[:-1], width // 2 + 1
        index, wave = _waves(p, q, out, width, values)
        once = (index % half == 0) | (
            2 * (index % half) == width
        )  # the other columns stand for their conjugates too
        added = values[..., None, :] * wave * torch.where(once, out * width, 0.5 * out * width)
        first = torch.arange(lead.numel(), device=index.device).view(*lead, 1, 1) * (out * half)
        S = added.new_zeros(lead.numel() * out * half).index_add_(
            0, (index + first).flatten(), added.flatten()
        )
        v = torch.fft.irfft2(S.view(*lead, out, half), s=(out, width))
        made = torch.empty_like(v)
        tall, wide = (out + 1) // 2, (width + 1) // 2
        for at, row in ((0, v[..., :tall, :]), (1, v[..., tall:, :].flip(-2))):
            made[..., at::2, ::2] = row[..., :wide]
            made[..., at::2, 1::2] = row[..., wide:].flip(-1)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, p, q = ctx.saved_tensors
        M, N = grad.shape[-2:]
        G = torch.cat([grad[..., ::2, :], grad[..., 1::2, :].flip(-2)], -2)
        V = torch.fft.rfft2(torch.cat([G[..., ::2], G[..., 1::2].flip(-1)], -1)).flatten(-2)

        def at(row: Tensor, column: Tensor) -> Tensor:
            """`(C G D^T)[row, column]`."""
            index, wave = _waves(row.clamp(0, M - 1), column.clamp(0, N - 1), M, N, values)
            found = V.gather(-1, index.flatten(-2)).view(index.shape)
            return (found.real * wave.real + found.imag * wave.imag).sum(-2)

        places = moves(values, p, q, at) if any(ctx.needs_input_grad[1:3]) else (None, None)
        return at(p, q), *places, None, None


def _waves(p: Tensor, q: Tensor, M: int, N: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The two frequencies of every entry: where they are in a half spectrum `[M, N // 2 + 1]`, flat, and their phase and height `[*, 2, n]`."""
    row, column = torch.stack([p, (M - p) % M], -2), q[..., None, :]
    of_row, of_column = (k.to(like.dtype) * (math.pi / (2 * size)) for k, size in ((p, M), (q, N)))
    angle = torch.stack([of_column + of_row, of_column - of_row], -2)
    above = 2 * column > N  # these are the conjugates of frequencies below the half
    row, column = torch.where(above, (M - row) % M, row), torch.where(above, N - column, column)
    height = 0.5 * _height(p, M, like) * _height(q, N, like)
    return row * (N // 2 + 1) + column, torch.polar(
        height[..., None, :].expand_as(angle), torch.where(above, -angle, angle)
    )


def _height(k: Tensor, N: int, like: Tensor) -> Tensor:
    """The largest value of a row of the transform."""
    return ((2 - (k == 0).to(like.dtype)) / N).sqrt()


def _twiddle(N: int, like: Tensor) -> Tensor:
    angle = torch.arange(N // 2 + 1, device=like.device, dtype=like.dtype) * (-math.pi / (2 * N))
    return torch.complex(angle.cos(), angle.sin())


def _norm(N: int, like: Tensor) -> Tensor:
    return _height(torch.arange(N, device=like.device), N, like)


# -- the Fourier transform ----------------------------------------------------------------------------------------


def fourier(x: Tensor) -> Tensor:
    """Real parts, then imaginary parts, of the non-negative frequencies of a real signal: `[*, 2 (N // 2 + 1)]`."""
    X = torch.fft.rfft(x)
    return torch.cat([X.real, X.imag], -1)


def fourier_transposed(s: Tensor, N: int) -> Tensor:
    """`Re sum_p (s_p + i s_{p+h}) e^{2 pi i p j / N}`, the transpose of `fourier`."""
    h = N // 2 + 1
    p = torch.arange(h, device=s.device)
    alone = (p == 0) | (2 * p == N)  # the others stand for their conjugates too
    weight = torch.where(alone, 1.0, 0.5).to(s.dtype) * N
    return torch.fft.irfft(torch.complex(s[..., :h] * weight, s[..., h:] * weight), n=N)


COSINE = Basis(dct, idct, lambda N: N)
FOURIER = Basis(fourier, fourier_transposed, lambda N: 2 * (N // 2 + 1))
