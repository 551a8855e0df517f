"""What writing a merged model reports: of a folder, and of one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MergedFolder:
    """What was written.

    Attributes:
        folder: where.
        names: the adapters that are in it.
        shards: files, of them `resumed` from an earlier run that was stopped.
        bytes: of all tensors.
        layers: that the adapters changed.
        dequantised: how many weights were stored quantised in the base and are dense here.
        untied: weights that were one with another's and have a value of their own now.
        differences: linear layer -> largest relative difference of its outputs on a probe input, merged and not, both in the model's type.
    """

    folder: str
    names: tuple[str, ...]
    shards: int
    resumed: int
    bytes: int
    layers: tuple[str, ...]
    dequantised: int
    untied: tuple[str, ...]
    differences: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest difference."""
        return max(self.differences.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {
            "worst": self.worst
        }

    def __str__(self) -> str:
        told = f"wrote {self.bytes:,} bytes in {self.shards} files to {self.folder}: {', '.join(self.names)} merged into {len(self.layers)} layers"
        told += f"; {self.resumed} files were there from a run that was stopped" if self.resumed else ""
        told += f"; {self.dequantised} quantised weights are dense now" if self.dequantised else ""
        told += f"; largest difference on a probe {self.worst:.2e}" if self.differences else ""
        return told + (f"; no longer tied: {', '.join(self.untied)}" if self.untied else "")


@dataclass(frozen=True)
class MergedFile:
    """What was written.

    Attributes:
        file: where.
        format: 'gguf' or 'onnx'.
        names: the adapters that are in it.
        tensors: how many.
        bytes: of the file.
        differences: linear layer -> largest relative difference of its outputs on a probe input, merged and not, before the type was chosen.
        output_error: largest relative difference of the outputs, as the file's runtime computes them; None where it was not run.
        notes: what must be told.
    """

    file: str
    format: str
    names: tuple[str, ...]
    tensors: int
    bytes: int
    differences: dict[str, float]
    output_error: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest difference of a layer."""
        return max(self.differences.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {"worst": self.worst}  # fmt: skip

    def __str__(self) -> str:
        told = f"wrote {self.tensors} tensors, {self.bytes:,} bytes, to {self.file}"
        told += f": {', '.join(self.names)} merged" if self.names else ""
        told += (
            ""
            if self.output_error is None
            else f"; largest difference of the outputs {self.output_error:.2e}"
        )
        return told + "".join(f"\nnote: {note}" for note in self.notes)
