"""Dynamic sampling: batches of new rows and old ones, in number independent of how many tasks and rows came before.

Song et al. 2023, arXiv:2309.14763.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from adaptome.continual.loop import Loop
from adaptome.continual.strategy import Strategy, StrategySettings
from adaptome.continual.stream import Stream
from adaptome.core.errors import RecipeError


class SamplingSettings(StrategySettings):
    batches: int = Field(default=100, ge=1, description="of an epoch, from the second task on")
    limit: Literal["constant", "growing", "none"] = Field(
        default="constant",
        description="constant: `batches` for every task; growing: times the number of the task; none: as many as all rows so far make",
    )
    new_per_old: float = Field(default=1.0, gt=0, description="new rows for each old one in a batch")


class Sampling(Strategy):
    """Trains on mixed batches from the second task on; on its own rows in the first."""

    Settings = SamplingSettings

    def check(self, stream: Stream, training: Any) -> None:
        new, old = parted(training.batch_size, self.settings.new_per_old)
        if not new or not old:
            raise RecipeError(
                f"training.batch_size={training.batch_size}: a batch of {new} new and {old} old rows does not mix them.\n"
                "  Give a larger batch, or another continual.strategy.new_per_old."
            )

    def mixes(self, loop: Loop) -> bool:
        """Whether this run of training is on mixed batches."""
        return loop.at > 0

    def in_order(self, loop: Loop) -> bool:
        return self.mixes(loop)

    def rows(self, loop: Loop) -> list[int]:
        if not self.mixes(loop):
            return loop.rows()
        old = [list(loop.stream.parts[n].train) for r in loop.rounds[: loop.at] for n in r]
        draw = np.random.default_rng([loop.seed, loop.at, zlib.crc32(loop.phase.encode())])
        count = max(round(self.batches(loop) * loop.epochs), 1)
        return mixed(loop.rows(), old, loop.batch_size, count, self.settings.new_per_old, draw)

    def batches(self, loop: Loop) -> int:
        """How many an epoch has."""
        wanted: int = self.settings.batches
        if self.settings.limit == "growing":
            return wanted * (loop.at + 1)
        if self.settings.limit == "none":
            so_far = sum(len(loop.stream.parts[n].train) for r in loop.rounds[: loop.at + 1] for n in r)
            return -(-so_far // loop.batch_size)
        return wanted


def parted(batch: int, new_per_old: float) -> tuple[int, int]:
    """How many new and old rows a batch has."""
    new = int(batch * new_per_old / (new_per_old + 1))
    return new, batch - new


def mixed(
    new: Sequence[int], old: Sequence[Sequence[int]], batch: int, batches: int, new_per_old: float, draw: np.random.Generator
) -> list[int]:  # fmt: skip
    """Rows of batches, one after another.

    For each old row a task is drawn uniformly, and then one of its rows: every earlier task has the same share, however large it is. New rows
    are drawn uniformly, none twice in a batch where there are enough.

    Args:
        new: rows of the present task.
        old: rows of each earlier one.
        batch: rows of a batch.
    """
    fresh, kept = parted(batch, new_per_old)
    made: list[int] = []
    for _ in range(batches):
        tasks = draw.integers(len(old), size=kept)
        rows = [old[int(t)][int(draw.integers(len(old[int(t)])))] for t in tasks]
        rows += [new[int(i)] for i in draw.choice(len(new), fresh, replace=len(new) < fresh)]
        made += [int(rows[i]) for i in draw.permutation(batch)]
    return made
