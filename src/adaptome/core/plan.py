"""What an attach does, told before and after: the plan, and the report of what trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adaptome.core.budget import Fit


@dataclass(frozen=True)
class Entry:
    """One host of a plan: where, what, how many trainable numbers (by formula), and settings that are its own to fit it."""

    path: str
    kind: str
    shape: tuple[int, ...]
    role: str
    parameters: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a method puts on a model. Prints as a table.

    Attributes:
        method: its name.
        settings: every setting of the method.
        entries: one per host, in module order.
        shared: trainable numbers of state that all hosts share.
        heads: trainable numbers of modules trained whole.
        base: parameters of the base model, tied ones once.
        seed: what initialised the adapters; None when nothing was built.
        budget: how close the method came to a budget, when one was asked for.
        notes: where the method's default targets or sizes gave way to the model.
    """

    method: str
    settings: dict[str, Any]
    entries: tuple[Entry, ...]
    shared: int
    heads: dict[str, int]
    base: int
    seed: int | None = None
    budget: Fit | None = None
    notes: tuple[str, ...] = ()

    @property
    def trainable(self) -> int:
        """Trainable numbers in all."""
        return sum(e.parameters for e in self.entries) + self.shared + sum(self.heads.values())

    @property
    def total(self) -> int:
        """Parameters of the base and the adapters together."""
        return self.base + self.trainable

    @property
    def percent(self) -> float:
        """100 * trainable / total."""
        return 100 * self.trainable / max(self.total, 1)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        entries = [vars(e) | {"shape": list(e.shape)} for e in self.entries]
        keys = ("method", "settings", "shared", "heads", "base", "trainable", "total", "percent", "seed")
        return {k: getattr(self, k) for k in keys} | {
            "budget": None if self.budget is None else vars(self.budget),
            "notes": list(self.notes),
            "entries": entries,
        }

    def __str__(self) -> str:
        rows = [
            (e.path or "(root)", e.role, e.kind, "x".join(map(str, e.shape)), f"{e.parameters:,}", e.note)
            for e in _fold(self.entries)
        ]
        rows += [(path, "head", "trained whole", "", f"{count:,}", "") for path, count in self.heads.items()]
        if self.shared:
            rows.append(("shared", "", "", "", f"{self.shared:,}", ""))
        text = table(("module", "role", "kind", "shape", "parameters", ""), rows)
        return (
            f"{self.method} {self.settings}\n{text}\ntrainable {self.trainable:,} of {self.total:,} ({self.percent:.4f} %)"
            + "".join(f"\n{line}" for line in (*self.notes, *([self.budget] if self.budget else ())))
        )


def _fold(entries: tuple[Entry, ...]) -> list[Entry]:
    """Entries alike but for their block's number become one row, `layers.*.q_proj (x32)`."""
    folded: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        general = ".".join("*" if part.isdigit() else part for part in entry.path.split("."))
        key = (general, entry.kind, entry.shape, entry.role, entry.parameters, entry.note)
        folded.setdefault(key, []).append(entry)
    rows = []
    for (general, kind, shape, role, _, note), same in folded.items():
        name = same[0].path if len(same) == 1 else f"{general} (x{len(same)})"
        rows.append(Entry(name, kind, shape, role, sum(e.parameters for e in same), note))
    return rows


@dataclass(frozen=True)
class Report:
    """What trains in a model, every tensor counted once. Prints as a table.

    Attributes:
        count: trainable numbers.
        total: all numbers, tied ones once.
        bytes: size of the trainable tensors.
        roles: trainable numbers by role ('q', 'down', 'head', 'shared', 'base', ...).
        names: qualified names of the trainable tensors.
    """

    count: int
    total: int
    bytes: int
    roles: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        """100 * count / total."""
        return 100 * self.count / max(self.total, 1)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "count": self.count,
            "total": self.total,
            "percent": self.percent,
            "bytes": self.bytes,
            "roles": self.roles,
            "names": list(self.names),
        }

    def __str__(self) -> str:
        rows = [(role, f"{count:,}") for role, count in sorted(self.roles.items(), key=lambda kv: -kv[1])]
        return f"{table(('role', 'trainable'), rows)}\ntrainable {self.count:,} of {self.total:,} ({self.percent:.4f} %), {self.bytes:,} bytes"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once; quantised ones by their unpacked size where it is known."""
    seen: dict[int, int] = {}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        shape = getattr(state, "shape", None)
        seen[id(parameter)] = int(shape.numel()) if shape is not None else parameter.numel()
    return sum(seen.values())
