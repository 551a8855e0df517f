"""replay: rows of earlier tasks, within an exact budget, are trained on with the new ones.

Chaudhry et al. 2019, arXiv:1902.10486 (on tiny memories), with a memory balanced over labels.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from adaptome.continual.loop import Loop
from adaptome.continual.memory import MemorySettings, WithMemory
from adaptome.continual.strategy import register_strategy


class ReplaySettings(MemorySettings):
    share: float | None = Field(
        default=0.5, gt=0, lt=1, description="of an epoch's rows that come from the memory; null: each once"
    )


@register_strategy("replay")
class Replay(WithMemory):
    """Train on new rows and remembered ones."""

    Settings = ReplaySettings

    def rows(self, loop: Loop) -> list[int]:
        new, kept = loop.rows(), self.kept
        share = self.settings.share
        if not kept or share is None:
            return new + kept
        wanted = max(round(len(new) * share / (1 - share)), 1)
        draw = np.random.default_rng([loop.seed, loop.at])
        order = np.concatenate([draw.permutation(len(kept)) for _ in range(-(-wanted // len(kept)))])
        return new + [kept[i] for i in order[:wanted]]
