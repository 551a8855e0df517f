"""Hadamard transforms: `x H` with an orthonormal H `[n, n]` of entries +-1/sqrt(n), without forming H.

H is a Kronecker product: of a base matrix of order m and one of order 2^k by Sylvester's construction, n = m 2^k. A product with it is
one small product per factor of at most 64 rows, O(n log n) a vector. Base matrices that are no power of two:

    Paley I     m = q + 1,    q = 3 mod 4 a prime:    12, 20, 24, 44, 60, 108, 140, ...
    Paley II    m = 2(q + 1), q = 1 mod 4 a prime:    28, 36, 76, 84, 148, ...
    four circulants in Goethals and Seidel's array:   52, 156, 172
    a product of two smaller ones:                    40 = 2 * 20, 144 = 12 * 12, ...

So 14336 = 28 * 512, 3072 = 12 * 256, 11008 = 172 * 64, 13824 = 108 * 128, 18944 = 148 * 128. Where no order is known the transform is
block-diagonal, of the largest power of two that divides n.
Sources: Paley 1933; Goethals and Seidel 1967. The circulants' first rows are constant on the orbits of a multiplicative subgroup; they
were searched for, and a test checks that H H^T = I.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: largest factor of a power of two that is one product: larger ones cost more than a second product
STEP = 64

#: order of the circulants -> a generator of the subgroup, and of each circulant the orbits (the first is {0}, the others by their smallest number) that hold -1, as bits
_CIRCULANTS = {
    13: (3, (10, 10, 6, 4)),
    39: (16, (1742, 11868, 10228, 4284)),
    43: (4, (50, 42, 104, 60)),
}


@functools.cache
def orders(n: int) -> tuple[int, ...]:
    """Orders of the factors whose product is n; a last entry of 0 marks a block-diagonal transform, whose blocks the others make.

    4096 -> (64, 64); 11008 -> (172, 64); 44032 -> (172, 16, 16); 7 -> (1, 0).
    """
    power = n & -n
    while power >= 1:
        m = n // power
        if m == 1 or _base(m) is not None:
            return (*([m] if m > 1 else []), *_powers(power)) or (1,)
        power //= 2
    return (*_powers(n & -n), 0) if n % 2 == 0 else (1, 0)


def _powers(power: int) -> tuple[int, ...]:
    """A power of two as factors of nearly equal size, at most STEP."""
    k = power.bit_length() - 1
    if not k:
        return ()
    count = -(-k // (STEP.bit_length() - 1))
    return tuple(2 ** (k // count + (i < k % count)) for i in range(count))


@functools.cache
def factors(n: int) -> tuple[Tensor, ...]:
    """The matrices whose Kronecker product is H of order n (of a block of it, where n has no H), orthonormal, in float32 on the CPU."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # tensors made in inference mode could not be used in training
        return tuple(_signs(order) / order**0.5 for order in orders(n) if order)


def transform(x: Tensor, matrices: Sequence[Tensor] | None = None, inverse: bool = False) -> Tensor:
    """`x H` (`x H^T` for the inverse) along the last dimension, in x's type: orthonormal, so that each undoes the other.

    Args:
        x: `[*, n]`.
        matrices: `factors(n)` where they are at hand on x's device; they are made in x's precision otherwise.
        inverse: the way back.
    """
    n = x.shape[-1]
    if matrices is None:
        matrices = [_signs(order).to(x.dtype).to(x.device) / order**0.5 for order in orders(n) if order]
    y, right = x, math.prod([len(H) for H in matrices])
    for matrix in matrices:
        H = (matrix if inverse else matrix.t()).to(x.dtype)
        right //= len(H)
        y = y.reshape(-1, len(H), right)  # the axis of this factor before those to come
        y = torch.matmul(H, y) if right > 1 else y[..., 0] @ H.t()
    return y.reshape(x.shape)


def _signs(order: int) -> Tensor:
    signs = _base(order)
    assert signs is not None
    return signs


@functools.cache
def _base(m: int) -> Tensor | None:
    """A Hadamard matrix of signs `[m, m]` in float32, or None where no construction is known here."""
    if m == 1:
        return torch.ones(1, 1, device="cpu")
    if m == 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu")
    if m % 4:
        return None
    for make in (_sylvester, _paley_one, _paley_two, _goethals_seidel, _product):
        made = make(m)
        if made is not None:
            return made
    return None


def _sylvester(m: int) -> Tensor | None:
    half, two = (_base(m // 2), _base(2)) if m & (m - 1) == 0 else (None, None)
    return None if half is None or two is None else torch.kron(two, half)


def _character(q: int) -> Tensor | None:
    """Jacobsthal's matrix `[q, q]`: whether the difference of two residues is a square (1), none (-1) or 0; for primes alone."""
    if q < 3 or any(q % d == 0 for d in range(2, math.isqrt(q) + 1)):
        return None
    chi = torch.full((q,), -1.0, device="cpu")
    chi[[k * k % q for k in range(1, q)]] = 1.0
    chi[0] = 0.0
    residues = torch.arange(q, device="cpu")
    return chi[(residues[:, None] - residues) % q]


def _bordered(Q: Tensor, corner: float) -> Tensor:
    """`[[0, 1], [corner, Q]]`."""
    q = len(Q)
    S = torch.zeros(q + 1, q + 1, device="cpu")
    S[0, 1:], S[1:, 0], S[1:, 1:] = 1.0, corner, Q
    return S


def _paley_one(m: int) -> Tensor | None:
    Q = _character(m - 1) if (m - 1) % 4 == 3 else None
    return None if Q is None else _bordered(Q, -1.0) + torch.eye(m, device="cpu")


def _paley_two(m: int) -> Tensor | None:
    Q = _character(m // 2 - 1) if (m // 2 - 1) % 4 == 1 else None
    if Q is None:
        return None
    S = _bordered(Q, 1.0)
    plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu")
    minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], device="cpu")
    return torch.kron(S, plus) + torch.kron(torch.eye(m // 2, device="cpu"), minus)


def _goethals_seidel(m: int) -> Tensor | None:
    v = m // 4
    if v not in _CIRCULANTS:
        return None
    generator, masks = _CIRCULANTS[v]
    subgroup, power = [1], generator
    while power != 1:
        subgroup.append(power)
        power = power * generator % v
    orbits: list[list[int]] = [[0]]
    for a in range(1, v):
        if not any(a in orbit for orbit in orbits):
            orbits.append(sorted({a * s % v for s in subgroup}))
    residues = torch.arange(v, device="cpu")
    A, B, C, D = (_circulant(orbits, mask, residues) for mask in masks)
    BR, CR, DR = B.flip(1), C.flip(1), D.flip(1)
    tBR, tCR, tDR = B.t().flip(1), C.t().flip(1), D.t().flip(1)
    rows = [[A, BR, CR, DR], [-BR, A, tDR, -tCR], [-CR, -tDR, A, tBR], [-DR, tCR, -tBR, A]]
    return torch.cat([torch.cat(row, 1) for row in rows])


def _circulant(orbits: list[list[int]], mask: int, residues: Tensor) -> Tensor:
    first = torch.ones(len(residues), device="cpu")
    for i, orbit in enumerate(orbits):
        if mask >> i & 1:
            first[orbit] = -1.0
    return first[(residues - residues[:, None]) % len(residues)]


def _product(m: int) -> Tensor | None:
    for d in range(2, math.isqrt(m) + 1):
        if m % d == 0:
            a, b = _base(d), _base(m // d)
            if a is not None and b is not None:
                return torch.kron(a, b)
    return None
