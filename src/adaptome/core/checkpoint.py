"""Adapters on disk: a folder with `adapter.safetensors` and `adaptome.json`, written whole or not at all.

    adapter.safetensors   the tensors of `parameters_of` (and buffers that settings and seed cannot rebuild), each once
    adaptome.json         format, method and settings, targets, seed, the base's id and fingerprint, versions, sha256 of the tensors

Loading checks everything before the model is touched: the format, the bytes, the base, the keys and shapes, and that every number is
finite. Nothing is unpickled, and nothing that a file names is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.attaching import attach, plan
from adaptome.core.discovery import discover
from adaptome.core.errors import (
    BaseMismatchError,
    CheckpointError,
    FormatError,
    HostError,
    KeyMismatchError,
    MethodError,
    StateError,
    TargetError,
    did_you_mean,
    nearest,
)
from adaptome.core.fingerprint import check_base as _check_base
from adaptome.core.hosts import at_hand
from adaptome.core.manifest import (
    MANIFEST,
    describe,
    dtype_name,
    read_manifest,
    read_tensors,
    write,
)
from adaptome.core.method import build, method_class
from adaptome.core.model import detach, set_trainable
from adaptome.core.state import (
    Attachment,
    adapters,
    attachment_of,
    distributed_wrapper,
    named_modules,
    root_of,
    tensors_of,
)


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


class Reader(Protocol):
    """Puts the adapter of another library's folder on a model: `(model, folder, name, trainable=...)`."""

    def __call__(
        self, model: nn.Module, folder: str | os.PathLike[str], name: str = ..., *, trainable: bool = ...
    ) -> LoadReport: ...


_READERS: dict[str, tuple[Callable[[Path], bool], Reader]] = {}
#: endings of files that are unpickled to be read
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
R = TypeVar("R", bound=Reader)


def register_reader(format: str, recognises: Callable[[Path], bool]) -> Callable[[R], R]:
    """Register what `load` reads another library's format with.

    Args:
        format: its name, for `load(..., format=)`.
        recognises: whether a path that holds no manifest of ours is of this format; of several the first registered is taken.
    """

    def put(reader: R) -> R:
        _READERS[format] = recognises, reader
        return reader

    return put


def readers() -> list[str]:
    """The names of the other libraries' formats that `load` reads."""
    discover("interop")
    return sorted(_READERS)


def _reader_of(path: Path, format: str | None) -> Reader | None:
    if format is None and (path / MANIFEST).is_file():
        return None
    known = readers()
    if format is not None and format not in known:
        raise FormatError(
            f"no format that is read is called {format!r}.{did_you_mean(format, known)} There are {', '.join(known)}."
        )
    if path.is_file() and path.suffix.lower() in _PICKLES:
        raise FormatError(
            f"{path} is a pickle, which may run any code when it is read; it is never read here.\n"
            "  Convert it where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'adapter.safetensors')."
        )
    if format is None:
        return next((reader for recognises, reader in _READERS.values() if recognises(path)), None)
    recognises, reader = _READERS[format]
    if path.exists() and not recognises(path):
        others = [name for name, (fits, _) in _READERS.items() if fits(path)]
        found = f"it is {' or '.join(others)}" if others else f"known are {', '.join(known)}"
        raise FormatError(f"{path} is not of the format {format}: {found}.")
    return reader


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


def _whole(value: Tensor) -> Tensor:
    """A plain CPU tensor; a sharded one is gathered (every process must call)."""
    value = value.detach()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.to("cpu", copy=True)


def load(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    trainable: bool = False,
    check_base: bool = True,
    format: str | None = None,
) -> LoadReport:
    """Put a saved adapter on a model, and activate it.

    Args:
        model: the base it was trained on (plain, or with other adapters).
        folder: what `save` wrote, or a folder or file of another library that there is a reader for, as PEFT's.
        name: on this model; None for 'default'.
        trainable: go on training it; False loads it frozen.
        check_base: refuse a base with other structure or weights.
        format: of another library, 'peft', 'diffusers', 'kohya', 'lycoris' or 'gguf'; None tells it by the files.

    Raises:
        CheckpointError: a subclass for each fault (see `adaptome.core.errors`); the model is then as it was.
        StateError: the name is taken.
    """
    reader = _reader_of(Path(folder), format)
    if reader is not None:
        return reader(model, folder, name or "default", trainable=trainable)
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
        chosen = method_class(manifest["method"])
    except MethodError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if chosen.hosts and not manifest["targets"]:
        raise FormatError(f"{source}: targets is not what ad.save writes there.")
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
    method = build(method_class(manifest["method"]), manifest["settings"])
    if check_base:
        how = _check_base(
            root_of(model), manifest["base"], manifest["base"].get("id"), tuple(manifest.get("heads", ())), method.factorises()
        )  # fmt: skip
    dtype = manifest.get("dtype")
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
    wanted, everything = tensors_of(attachment), tensors_of(attachment, rebuilt=True)
    # what was set by hand in place of what the seed rebuilds
    wanted |= {key: everything[key] for key in tensors if key in everything}
    missing, unexpected = [k for k in wanted if k not in tensors], [k for k in tensors if k not in wanted]
    shapes = _misshapen(wanted, tensors)
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
    put_in(attachment, tensors, source)


def put_in(attachment: Attachment, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into those of an attachment, of which there may be more.

    Raises:
        KeyMismatchError: another shape or type, or indices out of bounds; nothing is copied then.
    """
    places = tensors_of(attachment, rebuilt=True)
    shapes = _misshapen(places, tensors)
    if shapes:
        raise KeyMismatchError(f"{source}: {'; '.join(shapes[:3])}.\n  Nothing was set.")
    modules = named_modules(attachment)
    for path, module in modules.items():
        limits = module.limits() if isinstance(module, Adapter) else {}
        for key, bound in limits.items():
            _check_indices(f"{path}.{key}" if path else key, tensors, bound, source)
    with torch.no_grad():
        for key, value in tensors.items():
            _copy(places[key], value)
    for path, module in modules.items():
        own = {key.removeprefix(f"{path}.") for key in tensors if key.startswith(f"{path}.") or not path}
        set_by_hand = [key for key in getattr(module, "rebuilt", ()) if key in own]
        if set_by_hand:
            module.given = tuple(dict.fromkeys((*getattr(module, "given", ()), *set_by_hand)))
            if isinstance(module, Adapter):
                module.derive()


def _misshapen(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """What is of another shape or type, in words."""
    both = [(key, wanted[key], value) for key, value in tensors.items() if key in wanted]
    shapes = [
        f"{key}: {list(value.shape)} stored, {list(place.shape)} here"
        for key, place, value in both
        if value.shape != place.shape
    ]
    return shapes + [
        f"{key}: {dtype_name(value.dtype)} stored, {dtype_name(place.dtype)} here"
        for key, place, value in both
        if value.is_floating_point() != place.is_floating_point()
    ]


def _check_indices(key: str, tensors: dict[str, Tensor], bound: Any, source: str) -> None:
    value = tensors.get(key)
    if value is None:
        return
    limit = torch.as_tensor(bound)
    limit = limit.view(*limit.shape, *[1] * (value.dim() - limit.dim()))
    if (value.cpu() < 0).any() or (value.cpu() >= limit).any():
        raise KeyMismatchError(
            f"{source}: {key} holds indices from {int(value.min())} to {int(value.max())}; there are {bound}.\n  Nothing was set."
        )


def _copy(place: Any, value: Tensor) -> None:
    if hasattr(place, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        place.copy_(
            distribute_tensor(value.to(place.device, place.dtype), place.device_mesh, place.placements)
        )
    else:
        place.copy_(value.to(place.device))
