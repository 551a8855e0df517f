"""Stopping a run whose loss is no number any more."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteLoss:
    """Remembers the first optimizer step whose loss was NaN or infinite.

    On a CPU every loss is looked at when it comes. On an accelerator that would make every step wait for the
    device, so the step number is kept there and read only when asked for: at each log, evaluation and
    checkpoint, which wait anyway. Nothing is saved between the bad loss and its discovery.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Take note of a loss (any shape) of optimizer step `step`, counted from 1."""
        loss = loss.detach()
        bad = ~torch.isfinite(loss).all()
        now = torch.where(bad, step, 0).to(torch.int64)
        self._first = now if self._first is None else torch.where(self._first > 0, self._first, now)

    def first(self) -> int:
        """The first bad step, 0 if there was none; on an accelerator this waits for the device."""
        return 0 if self._first is None else int(self._first.item())
