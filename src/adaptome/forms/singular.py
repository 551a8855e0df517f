"""The singular value decomposition of a product of factors, without the product."""

from __future__ import annotations

import torch
from torch import Tensor


def singular(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U [*, out, k]`, `S [*, k]` and `Vh [*, k, in]` of `B A`; A `[*, r, in]`, B `[*, out, r]`, k the least of r, in and out."""
    (Q, R), (P, T) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
    U, S, Vh = torch.linalg.svd(R @ T.mT, full_matrices=False)
    return Q @ U, S, Vh @ P.mT


def truncated(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A and B of the leading `rank` triplets, each with the roots of the singular values, and the relative Frobenius error of `B A`."""
    root = S[..., :rank].sqrt()
    error = float(S[..., rank:].norm() / S.norm().clamp_min(1e-30))
    return root[..., None] * Vh[..., :rank, :], U[..., :rank] * root[..., None, :], error
