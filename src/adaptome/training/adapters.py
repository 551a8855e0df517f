"""The adapters of a model to a folder and back into the same adapters, gathered from shards where it is sharded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptome.core.checkpoint import fill
from adaptome.core.errors import CheckpointError
from adaptome.core.fingerprint import check_base
from adaptome.core.manifest import MANIFEST, describe, read_manifest, read_tensors, write
from adaptome.core.state import Attachment, adapters, find_root, tensors_of
from adaptome.training.optimizer import full


@dataclass(frozen=True)
class Gathered:
    """One adapter, ready to be written by one process: its whole tensors, on the CPU, and its manifest."""

    tensors: dict[str, Tensor]
    manifest: dict[str, Any]


def gathered_adapters(model: nn.Module) -> dict[str, Gathered]:
    """Every adapter of a model by name; of a sharded model every process must call it."""
    return {
        name: Gathered(
            {key: full(value.detach()).to("cpu", copy=True) for key, value in tensors_of(attachment).items()},
            describe(model, name),
        )
        for name, attachment in adapters(model).items()
    }


def write_adapters(folder: Path, gathered: dict[str, Gathered], always_named: bool = False) -> None:
    """Write each adapter as `ad.save` does: to `folder`, or to `folder/<name>` when there are several.

    Raises:
        NonFiniteError: an adapter holds NaN or infinity.
    """
    for name, adapter in gathered.items():
        place = folder / name if always_named or len(gathered) > 1 else folder
        write(place, adapter.tensors, adapter.manifest)


def restore_adapters(model: nn.Module, folder: Path) -> None:
    """Fill the adapters of a model with those of a checkpoint; they must be the same ones, on the same base.

    Raises:
        CheckpointError: an adapter is missing, of another method, or was made with other settings.
        BaseMismatchError: the base has another structure or other weights.
        KeyMismatchError: the tensors do not fit.
    """
    here = adapters(model)
    stored = {path.parent.name for path in folder.glob(f"*/{MANIFEST}")}
    if stored != set(here):
        raise CheckpointError(
            f"{folder} holds the adapters {', '.join(sorted(stored)) or 'none'}, the model has {', '.join(sorted(here))}.\n"
            f"  Attach what the run began with, under the same names."
        )
    for name, attachment in here.items():
        manifest = read_manifest(folder / name)
        _check_same(attachment, manifest, folder / name)
        check_base(
            find_root(model), manifest["base"], manifest["base"].get("id"), tuple(manifest.get("heads", ())),
            attachment.method.factorises(),
        )  # fmt: skip
        fill(attachment, read_tensors(folder / name, manifest), str(folder / name))


def _check_same(attachment: Attachment, manifest: dict[str, Any], source: Path) -> None:
    method, settings = attachment.method.name, json.loads(json.dumps(attachment.method.settings()))
    if manifest["method"] != method:
        raise CheckpointError(f"{source} is {manifest['method']}, the model's adapter is {method}.")
    for key, value in settings.items():
        if manifest["settings"].get(key) != value:
            raise CheckpointError(
                f"{source} was made with {key}={manifest['settings'].get(key)!r}, the model's adapter has {value!r}.\n"
                f"  Resume with the settings the run began with, or start anew in another output folder."
            )
