"""The files of an adapter folder: the manifest and the tensors, written whole and checked in full when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from adaptome.core.errors import (
    CheckpointError,
    FormatError,
    NonFiniteError,
    TornFileError,
)
from adaptome.core.files import atomic_folder
from adaptome.core.fingerprint import fingerprint
from adaptome.core.state import attachment_of, find_root
from adaptome.core.version import __version__

FORMAT = 1


TENSORS, MANIFEST = "adapter.safetensors", "adaptome.json"


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def write(folder: str | os.PathLike[str], tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Path:
    """Write tensors and manifest as an adapter folder."""
    bad = [
        key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if bad:
        raise NonFiniteError(
            f"{len(bad)} tensors hold NaN or infinity ({', '.join(bad[:3])}); nothing was written.\n  Go back to the last good checkpoint."
        )
    empty = [key for key, value in tensors.items() if value.numel() == 0]
    if empty:
        raise CheckpointError(
            f"{len(empty)} tensors are empty here ({', '.join(empty[:3])}): they are partitioned over processes; nothing was written.\n"
            "  Gather them first (with ZeRO-3: inside deepspeed.zero.GatheredParameters), or save from the trainer."
        )
    data = dump_tensors({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "adaptome"})
    manifest = {
        **manifest,
        "tensors": {
            "sha256": hashlib.sha256(data).hexdigest(),
            "count": len(tensors),
            "numbers": sum(t.numel() for t in tensors.values()),
        },
    }
    folder = Path(folder)
    with atomic_folder(folder, only=(TENSORS, MANIFEST)) as staging:
        (staging / TENSORS).write_bytes(data)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return folder


def describe(model: nn.Module, name: str, base_id: str | None = None) -> dict[str, Any]:
    """The manifest of one adapter, without what depends on the tensors."""
    root, a = find_root(model), attachment_of(model, name)
    config = getattr(root, "config", None)
    return {
        "format": FORMAT,
        "library": "adaptome",
        "method": a.method.name,
        "settings": a.method.settings(),
        "targets": [entry.path for entry in a.entries],
        "asked": {"targets": a.targets, "exclude": a.exclude, "layers": a.layers},
        "train": list(a.train),
        "heads": list(a.heads),
        "per_layer": a.per_layer,
        "seed": a.seed,
        "dtype": None if a.dtype is None else dtype_name(a.dtype),
        "base": {
            "id": base_id or getattr(config, "_name_or_path", None) or None,
            "revision": getattr(config, "_commit_hash", None),
            "class": type(root).__name__.removeprefix("Adapted"),
            **fingerprint(root, tuple(a.heads)),
        },
        "versions": {
            "adaptome": __version__,
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked manifest of an adapter folder.

    Raises:
        CheckpointError: no such folder or file.
        FormatError: not an adapter's, or of a newer format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        there = sorted(p.name for p in Path(folder).iterdir())[:8] if Path(folder).is_dir() else None
        none = "it is a file" if Path(folder).is_file() else "there is no such folder"
        found = f"it holds {there}" if there is not None else none
        raise CheckpointError(
            f"{folder} is not an adapter folder: no {MANIFEST} ({found}).\n  Give the folder that ad.save wrote; a PEFT folder and a .safetensors file of LoRA or LyCORIS are read as well."
        )
    try:
        manifest = json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TornFileError(
            f"{path} is not whole JSON ({error}).\n  Restore the folder from a copy."
        ) from error
    if (
        not isinstance(manifest, dict)
        or manifest.get("library") != "adaptome"
        or type(manifest.get("format")) is not int
        or manifest["format"] < 1
    ):
        raise FormatError(f"{path} is not an adaptome manifest.")
    if manifest["format"] > FORMAT:
        raise FormatError(
            f"{path} has format {manifest['format']}; this adaptome ({__version__}) reads up to {FORMAT}.\n  Upgrade adaptome: pip install -U adaptome."
        )
    missing = [k for k in ("method", "settings", "targets", "base", "tensors", "seed") if k not in manifest]
    if missing:
        raise FormatError(f"{path} lacks {', '.join(missing)}.")
    wrong = [where for where, holds in _manifest_checks(manifest) if not holds]
    if wrong:
        raise FormatError(f"{path}: {', '.join(wrong)} is not what ad.save writes there.")
    return manifest


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _manifest_checks(manifest: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Every entry that loading reads, and whether it has the type that it must have; the first wrong one of a kind ends its kind."""
    base, tensors = manifest["base"], manifest["tensors"]

    def strings(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    def sample(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(v, list) and len(v) == 4 and all(type(n) in (int, float) and abs(n) < 1e300 for n in v)
            for v in value.values()
        )

    yield "method", isinstance(manifest["method"], str)
    yield "settings", isinstance(manifest["settings"], dict)
    yield "targets", strings(manifest["targets"])
    yield "seed", type(manifest["seed"]) is int
    yield "dtype", manifest.get("dtype") in (None, *(dtype_name(d) for d in FLOATS))
    for key in ("train", "heads"):
        yield key, strings(manifest.get(key, []))
    patterns = manifest.get("per_layer", {})
    yield "per_layer", isinstance(patterns, dict) and all(isinstance(v, dict) for v in patterns.values())
    yield "tensors.sha256", isinstance(tensors, dict) and isinstance(tensors.get("sha256"), str)
    yield "base", isinstance(base, dict)
    if isinstance(base, dict):
        yield "base.names", isinstance(base.get("names"), str)
        for key in ("id", "structure"):
            yield f"base.{key}", isinstance(base.get(key), (str, type(None)))
        yield "base.sample", sample(base.get("sample"))
        yield "base.packed", strings(base.get("packed", []))


def read_tensors(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The checked tensors of an adapter folder.

    Raises:
        TornFileError: missing, incomplete or changed bytes.
        NonFiniteError: NaN or infinity.
    """
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise TornFileError(f"{path} is missing.\n  Restore the folder from a copy.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["tensors"]["sha256"]:
        raise TornFileError(
            f"{path} is not what was saved: its sha256 differs from the manifest's (torn, or changed after saving).\n  Restore the folder from a copy."
        )
    try:
        tensors = load_tensors(data)
    except safetensors.SafetensorError as error:
        raise TornFileError(f"{path} is not a whole safetensors file ({error}).") from error
    foreign = [
        f"{k} ({dtype_name(v.dtype)})" for k, v in tensors.items() if v.dtype not in (*FLOATS, *INTEGERS)
    ]
    if foreign:
        raise FormatError(f"{path} holds tensors of types that no adapter has: {', '.join(foreign[:3])}.")
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{path}: {len(bad)} tensors hold NaN or infinity, first {bad[0]}.")
    return tensors
