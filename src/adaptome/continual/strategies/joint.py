"""joint: all tasks at once, as if the stream were known. The upper bound; its matrix has one row."""

from __future__ import annotations

from adaptome.continual.strategy import Strategy, register_strategy
from adaptome.continual.stream import Stream


@register_strategy("joint")
class Joint(Strategy):
    """Train once on all tasks."""

    def rounds(self, stream: Stream) -> list[tuple[int, ...]]:
        return [tuple(range(len(stream.parts)))]
