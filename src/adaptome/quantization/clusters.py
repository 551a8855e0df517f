"""Weighted k-means of numbers, many rows at once: sorted once, then sums between borders are differences of running sums."""

from __future__ import annotations

import torch
from torch import Tensor


def cluster(
    x: Tensor, k: int, weight: Tensor | None = None, start: Tensor | None = None, steps: int = 100
) -> Tensor:
    """Centres `[*, k]`, ascending, of the numbers `[*, n]` of each row, by Lloyd's iteration on their weighted squared distances.

    The best of several beginnings is taken, row by row: equal steps from least to largest, equal shares of the numbers, half
    way between these, and `start`.

    Args:
        x: the numbers.
        k: centres.
        weight: of each number, `[*, n]`; None for 1.
        start: centres `[*, k]` to begin from as well.
        steps: at most; it ends when nothing moves.
    """
    lead, n = x.shape[:-1], x.shape[-1]
    rows, order = x.reshape(-1, n).sort(-1)
    mass = torch.ones_like(rows) if weight is None else weight.reshape(-1, n).to(rows.dtype).gather(-1, order)
    position = torch.linspace(0, 1, k, device=x.device, dtype=rows.dtype)
    even = rows[:, :1] + (rows[:, -1:] - rows[:, :1]) * position
    shares = rows[:, ((torch.arange(k, device=x.device) + 0.5) / k * n).long().clamp_max(n - 1)]
    starts = [even, shares, (even + shares) / 2]
    if start is not None:
        starts.insert(0, start.reshape(-1, k).to(rows.dtype))
    sums = _Sums(rows, mass)
    best, cost = sums.settle(starts[0], steps)
    for other in starts[1:]:
        centres, its = sums.settle(other, steps)
        better = its < cost
        best, cost = torch.where(better[:, None], centres, best), torch.where(better, its, cost)
    return best.view(*lead, k)


class _Sums:
    """Running sums of sorted rows: mass, first and second moment."""

    def __init__(self, rows: Tensor, mass: Tensor):
        self.rows = rows
        w, x = mass.double(), rows.double()
        pad = torch.zeros_like(w[:, :1])
        self.moments = [torch.cat([pad, m.cumsum(-1)], -1) for m in (w, w * x, w * x * x)]

    def settle(self, centres: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The centres at rest, and the cost of each row."""
        centres = centres.sort(-1).values
        for _ in range(steps):
            mass, first, _ = self._between(centres)
            moved = torch.where(mass > 0, first / mass.clamp_min(1e-300), centres.double()).to(centres.dtype)
            moved = moved.sort(-1).values
            if torch.equal(moved, centres):
                break
            centres = moved
        mass, first, second = self._between(centres)
        c = centres.double()
        return centres, (second - 2 * c * first + c * c * mass).sum(-1)

    def _between(self, centres: Tensor) -> list[Tensor]:
        """Each moment's part that is nearest to each centre, `[rows, k]`."""
        middle = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
        inner = torch.searchsorted(self.rows, middle)
        n = torch.full((len(centres), 1), self.rows.shape[-1], device=centres.device)
        borders = torch.cat([torch.zeros_like(n), inner, n], -1)
        return [moment.gather(-1, borders).diff(dim=-1) for moment in self.moments]


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Codes `[*, n]`, uint8, of the nearest of the ascending centres `[*, k]` of each row."""
    middle = ((centres[..., 1:] + centres[..., :-1]) / 2).contiguous()
    return torch.searchsorted(middle, x.contiguous()).to(torch.uint8)
