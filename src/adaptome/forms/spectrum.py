"""`dW = s F_out^T S F_in`: an update that is sparse in a frequency basis, with a few entries of S trained.

F is a real transform that an FFT computes: the orthonormal DCT, or the real and imaginary parts of the DFT. Two forms of a linear layer:
through the activations, F_out^T (S (F_in x)), at in + out elements of transforms and n entries of S a token; or with dW formed by FFT, and
again in the backward, the gradient of the entries through the activations all the same. An element of a transform costs about 140, an entry
of S about 8 multiplications of a matrix product, an element of dW about 200 (measured on a CPU); so the second is taken for many tokens
of a small layer. Both keep x alone for the backward. Products with S are those of a weighted bag of embeddings, which gathers no copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.forms.delta import Delta, run_changed
from adaptome.forms.fused import plain_weight, shaped

#: what an entry of S, an element of a transform, and one of dW cost in multiplications of a matrix product
ENTRY, TRANSFORM, ELEMENT = 8, 140, 200


class Fourier:
    """The real DFT. Coordinates: the real parts of the h = N // 2 + 1 frequencies from 0 up, then their imaginary parts.

    Transforms of tokens are *waves* `[2 h, tokens]`: the real and the imaginary part of each frequency in turn, a column a token, so that
    what an entry of S reads lies together.
    """

    def analyse(self, x: Tensor) -> Tensor:
        """The waves of `x [tokens, N]`."""
        return torch.view_as_real(torch.fft.rfft(x)).flatten(-2).t().contiguous()

    def synthesise(self, waves: Tensor, N: int) -> Tensor:
        """The transpose of `analyse`: `[tokens, N]`."""
        return self._inverse(torch.view_as_complex(waves.t().contiguous().unflatten(-1, (-1, 2))), N)

    def place(self, k: Tensor, N: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The row of the waves in which coordinate k is, and its factor, of like's precision."""
        h = N // 2 + 1
        return torch.where(k < h, 2 * k, 2 * (k - h) + 1), like.new_ones(k.shape)

    def length(self, N: int) -> int:
        """How many coordinates there are."""
        return 2 * (N // 2 + 1)

    @staticmethod
    def _inverse(V: Tensor, N: int) -> Tensor:
        """`Re sum_k V_k e^{2 pi i k j / N}`."""
        k = torch.arange(V.shape[-1], device=V.device)
        alone = (k == 0) | (2 * k == N)  # the others stand for their conjugates too
        parts = torch.view_as_real(V)
        weight = torch.where(alone[:, None], parts.new_tensor([N, 0]), 0.5 * N)
        return torch.fft.irfft(torch.view_as_complex(parts * weight), n=N)


class Cosine(Fourier):
    """The orthonormal DCT-II, by the FFT of the folded signal (Makhoul 1980): coordinate k is a turned frequency k or N - k."""

    def analyse(self, x: Tensor) -> Tensor:
        V = torch.fft.rfft(x.index_select(-1, _folded(x.shape[-1], x))).mul_(_twiddle(x.shape[-1], x))
        return torch.view_as_real(V).flatten(-2).t().contiguous()

    def synthesise(self, waves: Tensor, N: int) -> Tensor:
        V = torch.view_as_complex(waves.t().contiguous().unflatten(-1, (-1, 2))) * _twiddle(N, waves).conj()
        return self._inverse(V, N).index_select(-1, _unfolded(N, waves))

    def place(self, k: Tensor, N: int, like: Tensor) -> tuple[Tensor, Tensor]:
        height = _height(k, N, like)
        below = k <= N // 2
        return torch.where(below, 2 * k, 2 * (N - k) + 1), torch.where(below, height, -height)

    def length(self, N: int) -> int:
        return N


class SparseSpectrum(Delta):
    """Base of adapters whose update is sparse in a basis; subclasses set `basis` and implement `entries` and `delta`.

    Args:
        host: where it sits.
        scale: s.
        count: entries of S.
        shared: the method's state that all its adapters use.
    """

    #: F
    basis: ClassVar[Fourier]

    def __init__(self, host: Host, scale: float, count: int, shared: nn.Module | None = None):
        super().__init__(host, host.kind == "linear", shared)
        self.scale = scale
        # through the activations: two transforms of each side more, in the forward and the backward together
        a_token = 1.5 * TRANSFORM * (host.fan_in + host.fan_out) + 2 * ENTRY * count
        self.many = 2 * ELEMENT * host.fan_in * host.fan_out / a_token

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values of S, for the product; rows and columns that are trained are floats, to be rounded."""
        raise TypeError(f"{type(self).__name__} defines no entries.")

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        exact = not self.host.packed and self.host.dtype.itemsize >= 4  # else the sum would round dW away
        if not self.fast or not exact or x.numel() // x.shape[-1] <= self.many:
            return super().forward(frozen, x, *args, **kwargs)
        plain = plain_weight(self.host, frozen, x)
        if plain is None:
            return run_changed(self, frozen, x)
        rows, columns, values = self.entries()
        y: Tensor = _Formed.apply(
            x, *plain, values * (self.scale * self.strength), rows, columns, self.basis, self._changed
        )
        return y

    def _changed(self, W: Tensor) -> Tensor:
        return torch.add(W, self.delta(), alpha=self.strength).to(W.dtype)

    def product(self, x: Tensor) -> Tensor:
        rows, columns, values = self.entries()
        y: Tensor = _Product.apply(x, values * self.scale, rows, columns, self.host.fan_out, self.basis)
        return y


class _Formed(torch.autograd.Function):
    """`x (W + dW)^T + b`, forming W + dW again in the backward, and saving x and the entries."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, values: Tensor, rows: Tensor, columns: Tensor, basis: Fourier,
        changed: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        ctx.basis, ctx.changed = basis, changed
        ctx.save_for_backward(x, W, values, cells(rows), cells(columns))
        return shaped(F.linear(x.reshape(-1, x.shape[-1]), changed(W), b), x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, W, values, p, q = ctx.saved_tensors
        gx = grad @ ctx.changed(W) if ctx.needs_input_grad[0] else None
        G, X = (ctx.basis.analyse(t.flatten(0, -2).to(values.dtype)) for t in (grad, x))
        found = _gradients(
            ctx.basis, G, X, (grad.shape[-1], x.shape[-1]), values, p, q, ctx.needs_input_grad[4]
        )
        return gx, None, None, *found, None, None


class _Product(torch.autograd.Function):
    """`F_out^T (S (F_in x))`, saving x and the entries."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, out: int, basis: Fourier
    ) -> Tensor:
        ctx.basis = basis
        p, q = cells(rows), cells(columns)
        ctx.save_for_backward(x, values, p, q)
        X = basis.analyse(x.flatten(0, -2).to(values.dtype))
        waves = _spread(
            X, basis.place(q, x.shape[-1], values), basis.place(p, out, values), values, 2 * (out // 2 + 1)
        )
        return basis.synthesise(waves, out).to(x.dtype).view(*x.shape[:-1], out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, values, p, q = ctx.saved_tensors
        basis, sides = ctx.basis, (grad.shape[-1], x.shape[-1])
        G, X = (basis.analyse(t.flatten(0, -2).to(values.dtype)) for t in (grad, x))
        gx = None
        if ctx.needs_input_grad[0]:
            waves = _spread(
                G, basis.place(p, sides[0], values), basis.place(q, sides[1], values), values, len(X)
            )
            gx = basis.synthesise(waves, sides[1]).to(x.dtype).view(x.shape)
        return gx, *_gradients(basis, G, X, sides, values, p, q, ctx.needs_input_grad[2]), None, None


def cells(coordinates: Tensor) -> Tensor:
    """Coordinates as indices: integers as they are, floats rounded."""
    return coordinates.round().long() if coordinates.is_floating_point() else coordinates


def moves(values: Tensor, of_row: Tensor, of_column: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the places of entries, straight through the rounding: of K's differences between the cells on both sides."""
    return (values * of_row / 2).clamp(-1, 1), (values * of_column / 2).clamp(-1, 1)


def _gradients(
    basis: Fourier, G: Tensor, X: Tensor, sides: tuple[int, int], values: Tensor, p: Tensor, q: Tensor, moving: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of the entries of S and of their places, from `K = sum_t (F g_t) (F x_t)^T` at a few cells."""
    pairs = [(p, q)]
    if moving:
        pairs += [(p + 1, q), (p - 1, q), (p, q + 1), (p, q - 1)]

    def read(k: list[Tensor], N: int) -> Places:
        return basis.place(torch.cat(k).clamp(0, basis.length(N) - 1), N, values)

    (at, height), (by, width) = (read([pair[i] for pair in pairs], sides[i]) for i in (0, 1))
    found = (_dots(G, X, at, by) * height * width).view(len(pairs), -1)
    if not moving:
        return found[0], None, None
    return found[0], *moves(values, found[1] - found[2], found[3] - found[4])


Places = tuple[Tensor, Tensor]


def _dots(G: Tensor, X: Tensor, at: Tensor, by: Tensor) -> Tensor:
    """`sum_t G[at, t] X[by, t]`, without the gathered rows: the gradient of a bag's weights."""
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(G, X, by, at.new_empty(0), at, 0)
    return dots


def _spread(waves: Tensor, source: Places, target: Places, values: Tensor, length: int) -> Tensor:
    """`S F x` from the entries of S, `[length, tokens]`."""
    row, order = target[0].sort()
    bags = torch.searchsorted(row, torch.arange(length, device=row.device))
    weights = (values * source[1] * target[1])[order]
    return F.embedding_bag(source[0][order], waves, bags, mode="sum", per_sample_weights=weights)


# -- the cosine transform of a matrix -----------------------------------------------------------------------------


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
        v = real_inverse(S.view(*lead, out, half), width)
        return v.index_select(-2, _unfolded(out, v)).index_select(-1, _unfolded(width, v))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, p, q = ctx.saved_tensors
        M, N = grad.shape[-2:]
        G = grad.index_select(-2, _folded(M, grad)).index_select(-1, _folded(N, grad))
        V = torch.fft.fft(torch.fft.rfft(G), dim=-2).flatten(-2)

        def at(row: Tensor, column: Tensor) -> Tensor:
            """`(C G D^T)[row, column]`."""
            index, wave = _waves(row.clamp(0, M - 1), column.clamp(0, N - 1), M, N, values)
            found = V.gather(-1, index.flatten(-2)).view(index.shape)
            return (found.real * wave.real + found.imag * wave.imag).sum(-2)

        if not any(ctx.needs_input_grad[1:3]):
            return at(p, q), None, None, None, None
        places = moves(values, at(p + 1, q) - at(p - 1, q), at(p, q + 1) - at(p, q - 1))
        return at(p, q), *places, None, None


def real_inverse(S: Tensor, width: int) -> Tensor:
    """`torch.fft.irfft2` of half spectra `[*, out, width // 2 + 1]`, one side after the other: on a CPU in half the time."""
    return torch.fft.irfft(torch.fft.ifft(S, dim=-2), n=width)


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


def _folded(N: int, like: Tensor) -> Tensor:
    """The places of 0, 2, 4, ... and then those of the odd numbers, from the last down."""
    places = torch.arange(N, device=like.device)
    return torch.cat([places[::2], places[1::2].flip(0)])


def _unfolded(N: int, like: Tensor) -> Tensor:
    """Where each of N numbers is when they are folded: the inverse of `_folded`."""
    places = torch.arange(N, device=like.device)
    return torch.where(places % 2 == 0, places // 2, N - 1 - places // 2)


def _twiddle(N: int, like: Tensor) -> Tensor:
    angle = torch.arange(N // 2 + 1, device=like.device, dtype=like.dtype) * (-math.pi / (2 * N))
    return torch.complex(angle.cos(), angle.sin())


FOURIER, COSINE = Fourier(), Cosine()
