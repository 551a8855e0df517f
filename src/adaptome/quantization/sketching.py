"""Sketching a weight: tables of shared values by weighted clustering, then codes rounded with feedback.

    G = X X^T (damped),  G^-1 = U^T U,  d_j = U_jj
    T[row, group] = weighted k-means of the row's weights in the group, weight of column j: d_j^-p
    codes: column by column, the table's value nearest to what feedback has made of the weight

Sources: Zhang et al. 2024, arXiv:2410.06364 (SketchTune); arXiv:2407.10032 (LeanQuant), whose code takes d_j where its text has the
diagonal of G^-1. Groups are contiguous in the columns' own order, whatever order they are rounded in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptome.quantization.clusters import cluster, nearest
from adaptome.quantization.feedback import inverse_root, prepared, round_with_feedback
from adaptome.quantization.formats import Sketch


def sketched(
    W: Tensor,
    G: Tensor,
    form: Sketch,
    damping: float = 0.1,
    strength: float = 4.0,
    act_order: bool = True,
    feedback: bool = True,
) -> Tensor:
    """The bytes of W `[out, in]` as a sketch that keeps the layer's outputs on the calibration inputs.

    Args:
        W: the weight. G: `[in, in]` of its inputs.
        form: bits and tables.
        damping: share of G's mean diagonal that is added to it.
        strength: p; 0 clusters the weights as they are.
        act_order: round the columns by descending diagonal of G.
        feedback: make up for the rounding errors.
    """
    form.check(W.shape[1])
    W, G = prepared(W, G, damping)
    order = G.diagonal().argsort(descending=True) if act_order else torch.arange(W.shape[1], device=W.device)
    U = inverse_root(G[order][:, order])
    d = torch.empty_like(U.diagonal())
    d[order] = U.diagonal()
    parts = W.unflatten(-1, (form.tables, -1))
    importance = (d / d.mean()).pow(-strength).view(1, form.tables, -1).expand_as(parts)
    T = cluster(parts, form.levels, importance).to(form.dtype).double()
    if not feedback:
        return form.write(nearest(parts, T).flatten(1), T)
    q = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    size = W.shape[1] // form.tables

    def round_column(position: int, column: Tensor, rest: Tensor) -> Tensor:
        j = int(order[position])
        values = T[:, j // size]
        q[:, j] = code = nearest(column[:, None], values)[:, 0]
        return values.gather(1, code[:, None].long())[:, 0]

    round_with_feedback(W[:, order], U, round_column)
    return form.write(q, T)
