r"""An update cut to a rank: the factors, and what they lack.

An update dW is cut by its singular values, or by what the layer's inputs make of it:

    plain      min |dW - B A|_F                        B A = the leading singular triplets of dW
    weighted   min |(dW - B A) C^(1/2)|_F, C = X^T X   B = U_r, A = U_r^T dW, U_r the leading eigenvectors of dW C dW^T

The second is the least error at the layer's output over the calibration inputs X. A hundredth of C's mean diagonal is added to it, so that
what a few inputs happen not to show is not taken for nothing. Source: Eckart and Young, on dW C^(1/2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptome.core.errors import MergeError
from adaptome.forms.singular import singular

#: share of the second moment's mean diagonal that is added to it
DAMPING = 0.01


@dataclass(frozen=True)
class Converted:
    """One layer: how many ranks are used, and the relative error of its update and of what that adds to its output (None: not measured)."""

    rank: int
    weight_error: float
    output_error: float | None


@torch.no_grad()
def cut(
    pair: tuple[Tensor, Tensor, bool],
    C: Tensor | None,
    weighted: bool,
    rank: int | None,
    energy: float | None,
    max_error: float | None,
    path: str,
) -> tuple[Tensor, Tensor, Converted]:
    """Factors of the rank that was asked for, on the CPU in float32, and what they lack."""
    A0, B0, exact = pair
    A, B = A0.double(), B0.double()
    C = None if C is None else C.to(A)
    chosen = rank is not None or energy is not None or max_error is not None
    if not (exact or chosen):
        raise MergeError(
            f"the update of {path} has no bounded rank: give rank=, energy= or max_error= to say how much of it to keep."
        )
    basis, S = _basis(A, B, _damped(C) if weighted else None)
    k = A.shape[-2]
    if rank is not None:
        k = rank
    elif energy is not None or (max_error is not None and not exact):
        lost = 1 - energy if energy is not None else float(max_error or 0.0) ** 2
        k = _needed(S, lost)
    if k < A.shape[-2] or not exact:
        U = basis[..., :k]
        right = (U.mT @ B) @ A
        norms = right.norm(dim=-1).clamp_min(torch.finfo(right.dtype).tiny).sqrt()
        A1, B1 = right / norms[..., None], U * norms[..., None, :]
    else:
        A1, B1 = A, B
    dW, gap = B @ A, B @ A - B1 @ A1
    weight_error = float(gap.norm() / dW.norm().clamp_min(1e-300)) if k < A.shape[-2] or not exact else 0.0
    output_error = None
    if C is not None:
        missed, whole = (float((M @ C * M).sum().clamp_min(0).sqrt()) for M in (gap, dW))
        output_error = missed / max(whole, 1e-300) if weight_error else 0.0
    told = Converted(min(k, A1.shape[-2]), weight_error, output_error)
    return A1.float().cpu().contiguous(), B1.float().cpu().contiguous(), told


def _damped(C: Tensor | None) -> Tensor | None:
    return (
        None
        if C is None
        else C + DAMPING * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)
    )


def _basis(A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output directions `[*, out, k]` in which B A (on inputs of second moment C) is largest, and its squared norm along each."""
    if C is None:
        U, S, _ = singular(A, B)
        return U, S.square()
    Q, R = torch.linalg.qr(B)
    values, vectors = torch.linalg.eigh(R @ (A @ C @ A.mT) @ R.mT)
    return Q @ vectors.flip(-1), values.flip(-1).clamp_min(0)


def _needed(energies: Tensor, lost: float) -> int:
    """How many directions must stay so that no more than this share of the squared norm goes; of stacked layers the most."""
    total = energies.sum(-1, keepdim=True).clamp_min(1e-300)
    left = 1 - energies.cumsum(-1) / total
    enough = left <= max(lost, 1e-12)
    enough[..., -1] = True
    return int(enough.int().argmax(-1).max()) + 1
