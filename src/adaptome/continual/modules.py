"""Modules of single tasks: adapters with those rows of the head that are the task's, and what frozen ones said of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptome.continual.loop import Loop, Values


def cut(loop: Loop, rows: Sequence[int]) -> Values:
    """A copy of what trains, of the head's outputs these rows alone."""
    outputs = set(loop.outputs)
    return {k: v[list(rows)].clone() if k in outputs else v for k, v in loop.values().items()}


def whole(loop: Loop, module: Mapping[str, Tensor], rows: Sequence[int], start: Mapping[str, Tensor]) -> Values:  # fmt: skip
    """Undo `cut`: the head's other rows as in `start`."""
    made = {}
    for name, value in module.items():
        if name in loop.outputs:
            made[name] = start[name].clone()
            made[name][list(rows)] = value.to(made[name])
        else:
            made[name] = value.clone()
    return made


class Cache:
    """Logits of frozen modules, by module and row: each is computed once, over epochs and tasks.

    `calls` counts the forwards that were needed for it.
    """

    def __init__(self) -> None:
        self.kept: dict[int, dict[int, Tensor]] = {}
        self.calls = 0

    def get(self, module: int, rows: Sequence[int], compute: Any) -> Tensor:
        """Logits [rows, the module's labels], in the precision they were computed in.

        Args:
            compute: places of `rows` that are missing -> their logits.
        """
        known = self.kept.setdefault(module, {})
        missing = [place for place, row in enumerate(rows) if row not in known]
        if missing:
            self.calls += 1
            found = compute(torch.tensor(missing)).detach()
            for place, logits in zip(missing, found.cpu(), strict=True):
                known[rows[place]] = logits
        return torch.stack([known[row] for row in rows])

    def forget(self, module: int) -> None:
        """A module was trained again."""
        self.kept.pop(module, None)

    def state(self) -> dict[str, Any]:
        return {
            str(module): {"rows": list(known), "logits": torch.stack(list(known.values()))}
            for module, known in self.kept.items()
            if known
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kept = {
            int(module): dict(zip(told["rows"], told["logits"], strict=True))
            for module, told in state.items()
        }
