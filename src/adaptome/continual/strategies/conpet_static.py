"""conpet-static: one adapter and one head for all tasks, trained on new and old rows by dynamic sampling.

All earlier rows may be drawn, and a task costs the same number of batches however many came before it. Song et al. 2023, arXiv:2309.14763.
"""

from __future__ import annotations

from adaptome.continual.sampling import Sampling
from adaptome.continual.strategy import register_strategy


@register_strategy("conpet-static")
class ConPETStatic(Sampling):
    """Replay of the whole past at a constant cost."""
