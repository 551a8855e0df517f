"""Adapters on disk: a folder with `adapter.safetensors` and `adaptome.json`, written whole or not at all.

    adapter.safetensors   the tensors of `parameters_of` (and buffers that settings and seed cannot rebuild), each once
    adaptome.json         format, method and settings, targets, seed, the base's id and fingerprint, versions, sha256 of the tensors

Loading checks everything before the model is touched: the format, the bytes, the base, the keys and shapes, and that every number is
finite. Nothing is unpickled, and nothing that a file names is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from adaptome.core.attaching import attach, plan
from adaptome.core.errors import (
    BaseMismatchError,
    CheckpointError,
    FormatError,
    HostError,
    KeyMismatchError,
    MethodError,
    NonFiniteError,
    StateError,
    TargetError,
    TornFileError,
    nearest,
)
from adaptome.core.files import atomic_folder
from adaptome.core.fingerprint import check_base as _check_base
from adaptome.core.fingerprint import fingerprint
from adaptome.core.hosts import at_hand
from adaptome.core.method import build, method_class
from adaptome.core.model import detach, set_trainable
from adaptome.core.state import (
    Attachment,
    adapters,
    attachment_of,
    distributed_wrapper,
    find_root,
    root_of,
    tensors_of,
)

FORMAT = 1
TENSORS, MANIFEST = "adapter.safetensors", "adaptome.json"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        name: the adapter's name on the model.
        method: its method.
        tensors: how many tensors, and `numbers` how many numbers.
        base: how the base was recognised: 'structure and weights', or 'structure' when no weights could be compared.
        manifest: the whole manifest.
    """

    name: str
    method: str
    tensors: int
    numbers: int
    base: str
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return f"loaded {self.method} as {self.name!r}: {self.tensors} tensors, {self.numbers:,} numbers; base recognised by {self.base}"


# -- saving --------------------------------------------------------------------------------------------------------


def save(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, base_id: str | None = None
) -> Path:
    """Write one adapter to a folder, whole or not at all.

    Args:
        model: with the adapter. Sharded by FSDP2, every process must call; the first writes whole tensors.
        folder: made or replaced.
        name: of the adapter.
        base_id: hub id or path of the base; None to take it from the model's config.

    Returns:
        The folder.

    Raises:
        StateError: no adapter has that name.
        CheckpointError: the folder holds something else, or the disk is full.
        NonFiniteError: the adapter holds NaN or infinity.
    """
    attachment = attachment_of(model, name)
    with at_hand(m for top in attachment.modules() for m in top.modules()):
        tensors = {key: _whole(value) for key, value in tensors_of(attachment).items()}
    manifest = describe(model, name, base_id)
    if distributed_wrapper(model) != "FSDPModule":
        return write(folder, tensors, manifest)
    try:
        return write(folder, tensors, manifest) if torch.distributed.get_rank() == 0 else Path(folder)
    finally:
        torch.distributed.barrier()  # no process goes on before the folder is there


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


def _whole(value: Tensor) -> Tensor:
    """A plain CPU tensor; a sharded one is gathered (every process must call)."""
    value = value.detach()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.to("cpu", copy=True)


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
        "dtype": None if a.dtype is None else _name(a.dtype),
        "base": {
            "id": base_id or getattr(config, "_name_or_path", None) or None,
            "revision": getattr(config, "_commit_hash", None),
            "class": type(root).__name__.removeprefix("Adapted"),
            **fingerprint(root, tuple(a.heads)),
        },
        "versions": {
            "adaptome": _version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version() -> str:
    from adaptome import __version__

    return __version__


# -- loading -------------------------------------------------------------------------------------------------------


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked manifest of an adapter folder.

    Raises:
        CheckpointError: no such folder or file.
        FormatError: not an adapter's, or of a newer format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        there = sorted(p.name for p in Path(folder).iterdir())[:8] if Path(folder).is_dir() else None
        found = f"it holds {there}" if there is not None else "there is no such folder"
        raise CheckpointError(
            f"{folder} is not an adapter folder: no {MANIFEST} ({found}).\n  Give the folder that ad.save wrote; a PEFT folder is read as well."
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
            f"{path} has format {manifest['format']}; this adaptome ({_version()}) reads up to {FORMAT}.\n  Upgrade adaptome: pip install -U adaptome."
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
    yield "targets", strings(manifest["targets"]) and bool(manifest["targets"])
    yield "seed", type(manifest["seed"]) is int
    yield "dtype", manifest.get("dtype") in (None, *(_name(d) for d in FLOATS))
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
    foreign = [f"{k} ({_name(v.dtype)})" for k, v in tensors.items() if v.dtype not in (*FLOATS, *INTEGERS)]
    if foreign:
        raise FormatError(f"{path} holds tensors of types that no adapter has: {', '.join(foreign[:3])}.")
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{path}: {len(bad)} tensors hold NaN or infinity, first {bad[0]}.")
    return tensors


def load(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    trainable: bool = False,
    check_base: bool = True,
) -> LoadReport:
    """Put a saved adapter on a model, and activate it.

    Args:
        model: the base it was trained on (plain, or with other adapters).
        folder: what `save` wrote, or a PEFT folder.
        name: on this model; None for 'default'.
        trainable: go on training it; False loads it frozen.
        check_base: refuse a base with other structure or weights.

    Raises:
        CheckpointError: a subclass for each fault (see `adaptome.core.errors`); the model is then as it was.
        StateError: the name is taken.
    """
    if not (Path(folder) / MANIFEST).is_file() and (Path(folder) / "adapter_config.json").is_file():
        from adaptome.interop.peft import load_peft

        return load_peft(model, folder, name or "default", trainable=trainable)
    manifest = read_manifest(folder)
    tensors = read_tensors(folder, manifest)
    return install(
        model,
        manifest,
        tensors,
        name or "default",
        trainable=trainable,
        check_base=check_base,
        source=str(folder),
    )


def install(
    model: nn.Module,
    manifest: dict[str, Any],
    tensors: dict[str, Tensor],
    name: str,
    *,
    trainable: bool = False,
    check_base: bool = True,
    source: str = "",
) -> LoadReport:
    """Attach what a manifest describes and fill in its tensors; on an error the model is as it was."""
    base = manifest["base"]
    try:
        method_class(manifest["method"])
    except MethodError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if name in adapters(model):
        raise StateError(
            f"an adapter called {name!r} is attached already.\n  Load it under another name, or ad.detach(model, {name!r}) first."
        )
    try:
        how = _attach_described(model, manifest, name, check_base, sum(t.numel() for t in tensors.values()))
    except (TargetError, MethodError, HostError) as error:
        raise (BaseMismatchError if isinstance(error, TargetError) else CheckpointError)(
            f"{source}, saved from {base.get('id') or 'an unnamed base'}: {error}"
        ) from error
    try:
        fill(attachment_of(model, name), tensors, source)
    except CheckpointError:
        detach(model, name)
        raise
    set_trainable(model, name, trainable)
    return LoadReport(
        name, manifest["method"], len(tensors), sum(t.numel() for t in tensors.values()), how, manifest
    )


def _attach_described(
    model: nn.Module, manifest: dict[str, Any], name: str, check_base: bool, numbers: int
) -> str:
    how = "nothing: not checked"
    if check_base:
        how = _check_base(
            root_of(model), manifest["base"], manifest["base"].get("id"), tuple(manifest.get("heads", ()))
        )
    dtype = manifest.get("dtype")
    method = build(method_class(manifest["method"]), manifest["settings"])
    where: dict[str, Any] = {
        "targets": [f"={path}" for path in manifest["targets"]],
        "train": manifest.get("train", ()),
        "per_layer": manifest.get("per_layer"),
    }
    wanted = plan(model, method, **where).trainable
    if (
        wanted > 4 * numbers + 2**20
    ):  # before anything is built: settings may ask for more than fits in memory
        raise KeyMismatchError(
            f"the settings ask for {wanted:,} numbers and the file holds {numbers:,}.\n  Nothing was loaded."
        )
    dtype = None if dtype is None else getattr(torch, dtype)
    attach(model, method, name, **where, dtype=dtype, seed=manifest["seed"])
    return how


def fill(attachment: Attachment, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into an attachment; every key and shape must fit.

    Raises:
        KeyMismatchError: naming what is missing, unexpected or misshapen; nothing is copied then.
    """
    wanted = tensors_of(attachment)
    missing, unexpected = [k for k in wanted if k not in tensors], [k for k in tensors if k not in wanted]
    shapes = [
        f"{k}: {list(tensors[k].shape)} stored, {list(wanted[k].shape)} here"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    shapes += [
        f"{k}: {_name(tensors[k].dtype)} stored, {_name(wanted[k].dtype)} here"
        for k in wanted
        if k in tensors and tensors[k].is_floating_point() != wanted[k].is_floating_point()
    ]
    if missing or unexpected or shapes:
        words = [
            f"{len(missing)} missing ({', '.join(missing[:3])})" if missing else "",
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})" if unexpected else "",
        ]
        words += [f"{len(shapes)} of another shape or type ({'; '.join(shapes[:3])})" if shapes else ""]
        near = nearest(unexpected[0], missing, 1) if missing and unexpected else []
        hint = (
            f"\n  Perhaps {unexpected[0]} is {near[0]} under another name: were modules renamed?"
            if near
            else ""
        )
        raise KeyMismatchError(
            f"{source}: the tensors do not fit the model: {', '.join(w for w in words if w)}.{hint}\n  Nothing was loaded."
        )
    with torch.no_grad():
        for key, place in wanted.items():
            _copy(place, tensors[key])


def _copy(place: Any, value: Tensor) -> None:
    if hasattr(place, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        place.copy_(
            distribute_tensor(value.to(place.device, place.dtype), place.device_mesh, place.placements)
        )
    else:
        place.copy_(value.to(place.device))
