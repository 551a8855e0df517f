"""A memory of training rows with an exact budget, shared by replay, GEM and A-GEM."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from adaptome.continual.loop import Loop
from adaptome.continual.strategy import Strategy, StrategySettings
from adaptome.continual.stream import Stream
from adaptome.core.errors import RecipeError


class MemorySettings(StrategySettings):
    budget: int = Field(default=200, ge=1, description="rows kept, of all tasks together")


class WithMemory(Strategy):
    """Keeps rows of earlier tasks: the budget shared out evenly over labels, or over tasks where the labels stay.

    A group's share shrinks as groups come; what stays is the first of a fixed random order of its rows.
    """

    Settings = MemorySettings

    def __init__(self, settings: StrategySettings):
        super().__init__(settings)
        #: label or task -> rows of train, in the order they are kept in
        self.memory: dict[str, list[int]] = {}

    def check(self, stream: Stream, training: Any) -> None:
        groups = len({c for p in stream.parts for c in p.classes}) if stream.kind == "class" else len(stream.parts)  # fmt: skip
        what = "labels" if stream.kind == "class" else "tasks"
        if self.settings.budget < groups:
            raise RecipeError(
                f"continual.strategy.budget={self.settings.budget} is smaller than the stream's {groups} {what}: some would have no row.\n"
                f"  Give {groups} or more."
            )

    @property
    def kept(self) -> list[int]:
        """All rows of the memory."""
        return [row for rows in self.memory.values() for row in rows]

    def end(self, loop: Loop) -> None:
        stream = loop.stream
        for number in loop.rounds[loop.at]:
            part = stream.parts[number]
            groups: dict[str, list[int]] = {}
            for row in part.train:
                group = f"label {stream.labels[row]}" if stream.kind == "class" else f"task {number}"
                groups.setdefault(group, []).append(row)
            for group, rows in groups.items():
                draw = np.random.default_rng([loop.seed, number, zlib.crc32(group.encode())])
                new = [rows[i] for i in draw.permutation(len(rows))]
                self.memory[group] = self.memory.get(group, []) + new
        shares = shared_out(self.settings.budget, [len(rows) for rows in self.memory.values()])
        self.memory = {g: rows[:n] for (g, rows), n in zip(self.memory.items(), shares, strict=True)}

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.memory = dict(state["memory"])


def shared_out(budget: int, sizes: list[int]) -> list[int]:
    """Even shares of a budget, none above its size; what small groups leave goes to the others, and all of it is used.

    >>> shared_out(10, [2, 9, 9])
    [2, 4, 4]
    """
    shares, left = [0] * len(sizes), budget
    while left and (open_ := [i for i, size in enumerate(sizes) if shares[i] < size]):
        each = max(left // len(open_), 1)
        for i in open_:
            more = min(each, sizes[i] - shares[i], left)
            shares[i] += more
            left -= more
    return shares
