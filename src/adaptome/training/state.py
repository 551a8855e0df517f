"""Nested state (optimizer, scheduler, random generators) as JSON and safetensors, never as a pickle.

    write_state(folder, "optimizer", {"step": 3, "moments": [tensor, tensor]})
        optimizer.json          the structure; a tensor is the name it has in the other file
        optimizer.safetensors   the tensors, absent when there are none

Numbers keep their bits: Python writes floats with as many digits as it takes to read the same float back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptome.core.errors import CheckpointError, TornFileError

_PLAIN = (bool, int, float, str, type(None))


def write_state(folder: Path, name: str, value: Any) -> None:
    """Write `value`, made of dicts, lists, tuples, numbers, strings and tensors, to `<name>.json/.safetensors`.

    Raises:
        CheckpointError: something else is in it; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(value, name, tensors)
    (folder / f"{name}.json").write_text(json.dumps(structure, indent=1), encoding="utf-8")
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")


def read_state(folder: Path, name: str) -> Any:
    """The value that `write_state` wrote, with its tensors on the CPU.

    Raises:
        TornFileError: the files are missing, or do not belong together.
    """
    try:
        structure = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        stored = folder / f"{name}.safetensors"
        return _unpack(structure, load_file(stored) if stored.exists() else {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornFileError(f"{folder / name}.json cannot be read back: {error}") from error


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # a copy: safetensors refuses tensors that share memory, and a device's tensors
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict) and all(type(key) in _PLAIN for key in value):
        return {"dict": [[key, _pack(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    raise CheckpointError(
        f"{path} is a {type(value).__name__}, which a checkpoint cannot hold without pickling.\n"
        f"  It holds dicts, lists, tuples, numbers, strings and tensors. Use an optimizer or a scheduler whose "
        f"state is made of these, or save_only_model=True."
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
