"""sequential: each task is trained in turn and nothing is done about forgetting. The lower bound."""

from __future__ import annotations

from adaptome.continual.strategy import Strategy, register_strategy


@register_strategy("sequential")
class Sequential(Strategy):
    """Train on each task in turn."""
