"""Writing an adapter in another library's format: the formats register themselves, and `export` finds them by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adaptome.core.discovery import discover
from adaptome.core.errors import FormatError, MergeError, NonFiniteError, did_you_mean
from adaptome.core.fingerprint import fingerprint
from adaptome.core.state import Attachment, attachment_of, find_root


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where; a file for formats of one file.
        format: of what.
        rank: of every layer, smaller ones padded; of LoHa and LoKr the largest.
        errors: target -> relative error of its update; 0 where exact.
        notes: what a reader of the file must be told.
    """

    folder: str
    format: str
    rank: int
    errors: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**vars(self), "notes": list(self.notes), "worst": self.worst}

    def __str__(self) -> str:
        exact = "exact" if self.worst == 0 else f"largest relative error of an update {self.worst:.2e}"
        told = (
            f"wrote {len(self.errors)} updates as {self.format}, rank {self.rank}, to {self.folder}: {exact}"
        )
        return told + "".join(f"\nnote: {note}" for note in self.notes)


@dataclass(frozen=True)
class Asked:
    """What is to be written: the model with an attachment, where, and `export`'s settings."""

    model: nn.Module
    attachment: Attachment
    path: Path
    format: str
    rank: int | None = None
    tolerance: float | None = None
    task_type: str | None = None

    @property
    def root(self) -> nn.Module:
        """The module that carries the adapter."""
        return find_root(self.model)

    def within(self, errors: Mapping[str, float]) -> None:
        """Raise MergeError for a target whose error is above the tolerance."""
        worst = max(errors, key=lambda path: errors[path], default=None)
        if self.tolerance is not None and worst is not None and errors[worst] > self.tolerance:
            raise MergeError(
                f"rank {self.rank} leaves a relative error of {errors[worst]:.2e} on {worst}, above {self.tolerance:.0e}.\n  Raise the rank or the tolerance."
            )


Writer = Callable[[Asked], ExportReport]
W = TypeVar("W", bound=Writer)
_WRITERS: dict[str, Writer] = {}


def register_writer(*formats: str) -> Callable[[W], W]:
    """Register what `export` writes formats of these names with."""

    def put(writer: W) -> W:
        _WRITERS.update(dict.fromkeys(formats, writer))
        return writer

    return put


def writers() -> list[str]:
    """The names of the formats that can be written."""
    discover("interop")
    return list(_WRITERS)


def export(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    format: str = "peft-lora",
    rank: int | None = None,
    tolerance: float | None = None,
    task_type: str | None = None,
) -> ExportReport:
    """Write an adapter in another library's format.

    Args:
        model: with the adapter.
        folder: made or replaced; for 'diffusers', 'kohya', 'lycoris' and 'gguf' a file by its ending, .safetensors or .gguf.
        name: of the adapter.
        format: 'peft-lora' for any weight method; 'peft-dora', 'peft-ia3', 'peft-prompt-tuning', ... for a method that PEFT has too, as it is;
            'peft' for that where there is one, else LoRA. 'diffusers' and 'kohya': LoRA or DoRA for image models; 'lycoris': LoHa, LoKr, IA3
            and whole modules too; 'gguf': LoRA for llama.cpp.
        rank: truncate updates of a higher rank to this one; a method that is not low-rank needs it.
        tolerance: refuse when an update's relative error is above it.
        task_type: PEFT's ('CAUSAL_LM', 'SEQ_CLS', ...), for `AutoPeftModel`.

    Raises:
        MergeError: the method has no such form, a rank is needed, a layer has no place in the format, or the error is too large.
        FormatError: no such format.
        CheckpointError: the folder holds something else.
    """
    if format not in writers():
        raise FormatError(
            f"no export format is called {format!r}.{did_you_mean(format, _WRITERS)} There are {', '.join(_WRITERS)}."
        )
    return _WRITERS[format](
        Asked(model, attachment_of(model, name), Path(folder), format, rank, tolerance, task_type)
    )


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteError for NaN or infinity in what is to be written."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{len(bad)} tensors hold NaN or infinity ({bad[0]}); nothing was written.")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of every tensor's name, shape and numbers."""
    made = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        made.update(f"{key} {list(value.shape)} {value.dtype}".encode())
        made.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def provenance(root: nn.Module, attachment: Attachment, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What a file's metadata tells of its origin: the base's id, revision and structure, the method, and a hash of the tensors."""
    config: Any = getattr(root, "config", None)
    made = {
        "base": base_of(root), "revision": getattr(config, "_commit_hash", None),
        "base_names_sha256": fingerprint(root, tuple(attachment.heads))["names"], "sha256": digest(tensors), "method": attachment.method.name,
    }  # fmt: skip
    return {key: str(value) for key, value in made.items() if value}


def base_of(root: nn.Module) -> str | None:
    """The base's id or path, where its configuration has one."""
    config: Any = getattr(root, "config", None)
    if isinstance(config, Mapping):  # diffusers'
        return config.get("_name_or_path")
    return getattr(config, "_name_or_path", None) or None
