"""adapter-per-task: every task has adapters and a head of its own, and prediction is told which task a row is of.

Nothing is forgotten, and nothing is shared: what another strategy reaches with the task known is measured against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptome.continual.loop import Loop, masked
from adaptome.continual.strategy import Again, Strategy, StrategySettings, register_strategy


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

    def place(self, loop: Loop, part: int) -> None:
        loop.put(self.tasks[part])

    def logits(self, loop: Loop, outputs: Any, again: Again, part: int | None = None) -> Tensor:
        logits: Tensor = outputs["logits"]
        return logits if part is None else masked(logits, loop.stream.parts[part].classes)

    def state(self) -> dict[str, Any]:
        return {"start": self.start, "tasks": self.tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.start, self.tasks = dict(state["start"]), list(state["tasks"])
