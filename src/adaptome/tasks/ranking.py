"""Ranking all entities: filtered ranks, MRR and hits, and the batches that carry which answers count.

A row's labels say which entities are answers: the number of one that is asked for; `known(number)` of one that is an answer too and must not
compete; `FILL` to fill up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FILL = -1
#: what is measured of a rank
MEASURES = ("mrr", "hits_at_1", "hits_at_3", "hits_at_10")


def known(number: int) -> int:
    """The label of an answer that does not compete; applied again it gives the number back."""
    return -2 - number


def filtered_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Ranks [B, L] of the entities that are asked for, among those that are no answer; NaN elsewhere.

    All other answers are left out, asked for or known. Entities of equal score count half, so that a constant score gets the middle rank
    (Berrendorf et al. 2020, arXiv:2002.06914, 'realistic').

    Args:
        scores: [B, N].
        labels: [B, L], as this module says.
    """
    asked = labels >= 0
    numbers = torch.where(asked, labels, torch.where(labels <= -2, -2 - labels, scores.shape[1]))
    answers = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    others = scores.masked_fill(answers.scatter_(1, numbers, True)[:, :-1], torch.inf).sort(-1).values
    left = torch.isfinite(others).sum(-1, keepdim=True)  # those that compete come first
    own = scores.gather(1, labels.clamp_min(0)).contiguous()
    above = left - torch.searchsorted(others, own, right=True)
    equal = torch.searchsorted(others, own, right=True) - torch.searchsorted(others, own)
    return torch.where(asked, 1 + above + equal / 2, torch.nan)


def measured(ranks: Tensor) -> Tensor:
    """[B, 4], each of `MEASURES` as a mean over a row's ranks [B, L] that are not NaN."""
    values = [1 / ranks, *((ranks <= k).float().masked_fill(ranks.isnan(), torch.nan) for k in (1, 3, 10))]
    return torch.stack([value.nanmean(-1) for value in values], -1)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of numbers and lists of numbers as tensors, lists filled up."""
    made = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        if isinstance(values[0], (list, tuple)):
            longest = max(map(len, values))
            values = [[*value, *[FILL] * (longest - len(value))] for value in values]
        made[column] = torch.tensor(values)
    return made
