"""adapter-per-task: every task has adapters and a head of its own, and prediction is told which task a row is of.

Nothing is forgotten, and nothing is shared: what another strategy reaches with the task known is measured against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from adaptome.continual.loop import Loop
from adaptome.continual.strategy import Strategy, StrategySettings, register_strategy


@register_strategy("adapter-per-task")
class PerTask(Strategy):
    """Adapters of its own for every task."""

    task_known = True

    def __init__(self, settings: StrategySettings):
        super().__init__(settings)
        self.start: dict[str, Tensor] = {}
        self.tasks: list[dict[str, Tensor]] = []

    def begin(self, loop: Loop) -> None:
        if not self.start:
            self.start = loop.values()
        loop.put(self.start)

    def end(self, loop: Loop) -> None:
        self.tasks.append(loop.values())

    @contextmanager
    def scoring(self, loop: Loop, part: int) -> Iterator[None]:
        now = loop.values()
        loop.put(self.tasks[part])
        try:
            yield
        finally:
            loop.put(now)

    def state(self) -> dict[str, Any]:
        return {"start": self.start, "tasks": self.tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.start, self.tasks = dict(state["start"]), list(state["tasks"])
