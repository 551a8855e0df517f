"""What a merge did: told by layer, and for the whole model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adaptome.core.plan import table


@dataclass(frozen=True)
class Requantised:
    """What quantising one merged weight again did.

    Attributes:
        error: relative Frobenius distance to the weight that was meant.
        missed: squared norm of what separates the stored weight from the one that was meant.
        meant: squared norm of the adapters' change.
    """

    error: float
    missed: float
    meant: float

    @property
    def lost(self) -> float:
        """Distance that is left, as a share of the adapters' change."""
        return (self.missed / self.meant) ** 0.5 if self.meant else 0.0


@dataclass(frozen=True)
class MergeReport:
    """What was merged. Prints as a table.

    Attributes:
        names: the adapters.
        differences: layer -> largest relative difference of the outputs on a probe (None: no probe for this kind of layer).
        requantised: layer -> relative error that requantising the merged weight made.
        lost: layer -> distance that requantising left between the stored and the meant weight, as a share of the
            adapters' change: at 1 and above the base was as near.
        untied: layers whose weight was tied to another's and is now their own.
        created: parameters that the layers did not have before: a class built anew from the model's configuration has no place for them.
        model: the largest relative difference of the whole model's outputs on a probe; None where its inputs are not known.
    """

    names: tuple[str, ...]
    differences: dict[str, float | None]
    requantised: dict[str, float]
    untied: tuple[str, ...]
    lost: dict[str, float] = field(default_factory=dict)
    created: tuple[str, ...] = ()
    model: float | None = None

    @property
    def worst(self) -> float:
        """The largest difference, of a layer or of the model."""
        return max((d for d in [self.model, *self.differences.values()] if d is not None), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            **vars(self),
            "names": list(self.names),
            "untied": list(self.untied),
            "created": list(self.created),
            "worst": self.worst,
        }

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            (
                path,
                "-" if d is None else f"{d:.2e}",
                f"{self.requantised[path]:.2e}" if path in self.requantised else "",
                f"{self.lost[path]:.0%}" if path in self.lost else "",
            )
            for path, d in self.differences.items()
        ]
        made = f"\nnew parameters: {', '.join(self.created)}" if self.created else ""
        whole = (
            "not compared: its inputs are not known" if self.model is None else f"differs by {self.model:.2e}"
        )
        columns = ("layer", "difference", "requantisation error", "change lost")
        return f"merged {', '.join(self.names)}\n{table(columns, rows)}\nthe model's output: {whole}{made}"
