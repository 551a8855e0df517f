"""Rounding with feedback (GPTQ), and what it needs: the inputs' Gram matrix, and weights without outliers (MagR).

    min_Q  sum over rows of (w - q) G (w - q)^T,    G = X X^T of calibration inputs X [in, tokens]

Columns are rounded one by one; the error of each is made up for, as far as it can be, by those still to come:

    G^-1 = U^T U (U upper triangular),    e = (w_j - q_j) / U_jj,    w_j' -= e U_jj'  for j' > j

Sources: Frantar et al. 2022, arXiv:2210.17323 (GPTQ); Zhang et al. 2024, arXiv:2406.00800 (MagR).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adaptome.core.errors import DataError
from adaptome.quantization.formats import Uniform


def prepared(W: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """W without the columns that no input reaches, and G with a share of its mean diagonal added so that it can be inverted; float64.

    Raises:
        DataError: G holds NaN or infinity.
    """
    G, W = G.double().clone(), W.double().clone()
    if not torch.isfinite(G).all():
        raise DataError("the calibration inputs of a layer hold NaN or infinity.\n  Calibrate in float32.")
    dead = G.diagonal() == 0
    W[:, dead] = 0
    G.diagonal()[dead] = 1.0
    G.diagonal().add_(damping * G.diagonal().mean())
    return W, G


def inverse_root(G: Tensor) -> Tensor:
    """U, upper triangular, with `G^-1 = U^T U`."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(G))
    return torch.linalg.cholesky(inverse, upper=True)


def round_with_feedback(
    W: Tensor,
    U: Tensor,
    round_column: Callable[[int, Tensor, Tensor], Tensor],
    block: int = 128,
) -> Tensor:
    """W `[out, in]` rounded column by column, in their order.

    Args:
        W: the weight.
        U: `inverse_root` of its inputs' Gram matrix.
        round_column: value `[out]` for column j, from j, the column as it is now, and it with those behind it, up to date within a block.
        block: columns between two updates of the rest.
    """
    W, Q = W.clone(), torch.empty_like(W)
    for start in range(0, W.shape[1], block):
        end = min(start + block, W.shape[1])
        part, errors = W[:, start:end], torch.zeros_like(W[:, start:end])
        for i in range(end - start):
            j = start + i
            Q[:, j] = round_column(j, part[:, i], part[:, i:])
            errors[:, i] = (part[:, i] - Q[:, j]) / U[j, j]
            part[:, i:] -= torch.outer(errors[:, i], U[j, j:end])
        W[:, end:] -= errors @ U[start:end, end:]
    return Q


def gptq(W: Tensor, G: Tensor, form: Uniform, damping: float = 0.01, act_order: bool = False) -> Tensor:
    """The bytes of W `[out, in]` in a uniform format, rounded with feedback.

    Each group's grid is made when its first column comes, from what feedback has made of it; with `act_order`, which begins with the
    columns of the largest inputs, all are made at the start.

    Args:
        W: the weight. G: `[in, in]`.
        form: bits, group and zero point.
        damping: share of G's mean diagonal that is added to it.
        act_order: round the columns by descending diagonal of G.
    """
    W, G = prepared(W, G, damping)
    fan_in = W.shape[1]
    order = G.diagonal().argsort(descending=True) if act_order else torch.arange(fan_in, device=W.device)
    s, z = (p.double() for p in form.grid(W))
    q = torch.empty(W.shape, dtype=torch.uint8, device=W.device)

    def round_column(position: int, column: Tensor, rest: Tensor) -> Tensor:
        j = int(order[position])
        g = j // form.group
        if not act_order and j % form.group == 0:
            made = form.grid(rest[:, : form.group])
            s[:, g], z[:, g] = made[0][:, 0].double(), made[1][:, 0].double()
        code = form.nearest(column[:, None], s[:, g : g + 1], z[:, g : g + 1])[:, 0]
        q[:, j] = code
        half = form.levels // 2
        return (
            (code.double() - half) * s[:, g] + z[:, g]
            if form.zero == "float"
            else (code.double() - z[:, g]) * s[:, g]
        )

    block = max(form.group, 128 // form.group * form.group)
    round_with_feedback(W[:, order], inverse_root(G[order][:, order]), round_column, block)
    return form.write(q, s.float(), z.float())


def magr(W: Tensor, G: Tensor, group: int | None = None, strength: float = 1e-3, steps: int = 200) -> Tensor:
    """W with smaller largest numbers and nearly the same outputs, so that its quantisation steps are finer.

        min_V  1/2 tr((V - W) G (V - W)^T) / largest eigenvalue of G  +  strength * sum of the groups' largest magnitudes

    by proximal gradient steps of length 1; the proximal map of the largest magnitude takes away the projection on an l1 ball.

    Args:
        W: `[out, in]`. G: `[in, in]`.
        group: inputs of a group; None for the whole row.
        strength: of the second term. steps: how many.
    """
    G = G.to(W.dtype) / torch.linalg.matrix_norm(G.to(W.dtype), 2).clamp_min(torch.finfo(W.dtype).tiny)
    width = group if group is not None and W.shape[1] % group == 0 else W.shape[1]
    V = W.clone()
    for _ in range(steps):
        V -= (V - W) @ G
        V = _without_peaks(V.unflatten(-1, (-1, width)), strength).flatten(1)
    return V


def _without_peaks(V: Tensor, radius: float) -> Tensor:
    """V minus its projection on the l1 ball of this radius, along the last dimension: its largest magnitudes cut at one level."""
    magnitude = V.abs().sort(-1, descending=True).values
    count = torch.arange(1, V.shape[-1] + 1, device=V.device)
    excess = (magnitude.cumsum(-1) - radius) / count
    last = (magnitude > excess).sum(-1, keepdim=True).clamp_min(1) - 1
    level = excess.gather(-1, last).clamp_min(0)
    return V.clamp(-level, level)
