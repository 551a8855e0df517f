"""One safetensors file of an adapter: found, read within limits, and written whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from adaptome.core.errors import CheckpointError, FormatError, NonFiniteError, TornFileError
from adaptome.core.files import atomic_folder, write_atomic
from adaptome.core.manifest import FLOATS, dtype_name
from adaptome.interop.formats import refuse_not_finite

#: what diffusers calls the file in a folder
FILE = "pytorch_lora_weights.safetensors"
#: adapters of the largest models have a few thousand tensors and some gigabytes
MOST_KEYS, MOST_BYTES = 200_000, 2**36
#: of adapters, and of the counts and flags beside them
_TYPES = {*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool}


def file_of(path: Path) -> Path | None:
    """The file that a path stands for: itself, or the one in a folder as diffusers writes it."""
    if path.is_file():
        return path if path.suffix.lower() == ".safetensors" else None
    return path / FILE if (path / FILE).is_file() else None


def keys_of(path: Path) -> list[str]:
    """The tensors' names; none where it is not a whole safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return []


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        TornFileError: not a whole safetensors file.
        FormatError: too large, too many tensors, or types that no adapter has.
        NonFiniteError: NaN or infinity.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise FormatError(f"{path} has {size:,} bytes; an adapter of more than {MOST_BYTES:,} is not read.")
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            if len(keys) > MOST_KEYS:
                raise FormatError(
                    f"{path} holds {len(keys):,} tensors; one of more than {MOST_KEYS:,} is not read."
                )
            tensors = {key: file.get_tensor(key) for key in keys}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, AttributeError) as error:  # the second for types that torch has not
        raise TornFileError(f"{path} is not a whole safetensors file ({error}).") from error
    foreign = [f"{k} ({dtype_name(v.dtype)})" for k, v in tensors.items() if v.dtype not in _TYPES]
    if foreign:
        raise FormatError(f"{path} holds tensors of types that no adapter has: {', '.join(foreign[:3])}.")
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{path}: {len(bad)} tensors hold NaN or infinity, first {bad[0]}.")
    return tensors, metadata


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a file, or a folder that holds it where the path has no such ending; whole or not at all.

    Raises:
        NonFiniteError: NaN or infinity; nothing is written.
        CheckpointError: the folder holds something else, or the disk is full.
    """
    refuse_not_finite(tensors)
    data = dump_tensors(
        {k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt", **metadata}
    )
    if path.suffix.lower() == ".safetensors":
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, data)
    with atomic_folder(path, only=(FILE,)) as staging:
        (staging / FILE).write_bytes(data)
    return path / FILE
