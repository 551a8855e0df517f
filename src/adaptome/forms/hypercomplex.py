"""`sum_k A_k (x) (S_k^T T_k)`: parametrised hypercomplex multiplication (PHM), applied to activations and never formed."""

from __future__ import annotations

import torch
from torch import Tensor


def phm(x: Tensor, A: Tensor, S: Tensor, T: Tensor) -> Tensor:
    """`W x` with `W = sum_k A_k (x) (S_k^T T_k)`, by `(A (x) B) x = A X B^T`, x seen as X `[n, in/n]`.

    Args:
        x: `[..., in]`.
        A: `[n, n, n]`, the k-th matrix first.
        S: `[n, r, out/n]`.
        T: `[n, r, in/n]`.

    Returns:
        `[..., out]`.
    """
    n, r = T.shape[:2]
    A, S, T = A.to(x.dtype), S.to(x.dtype), T.to(x.dtype)
    reduced = x.reshape(-1, n, T.shape[2]) @ T.flatten(0, 1).t()  # [tokens, j, (k, r)]
    # all A_k at once, on (j, k, r): one small matrix that is 0 between different (k, r)
    same = torch.eye(n * r, dtype=x.dtype, device=x.device).view(n, r, n, r)
    mix = torch.einsum("kij,krls->jkrils", A, same).reshape(n * n * r, n * n * r)
    mixed = reduced.reshape(-1, n * n * r) @ mix
    made = mixed.view(-1, n, n * r) @ S.flatten(0, 1)
    return made.reshape(*x.shape[:-1], -1)
