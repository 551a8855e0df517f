"""A merged model as a Hugging Face folder, written layer by layer: beside the model, memory holds one layer more.

    OUTPUT.partial/       while it is written; a run that was stopped goes on after the last whole shard
      plan.json           what goes where, and a hash of adapter, base and settings
      model-*.safetensors
    OUTPUT/               when all is there: the same, with config.json, the generation's settings and the processor's files

The model itself is not changed. Quantised weights are written dense, as what they stand for plus the adapters.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import MergeError
from adaptome.core.files import remove_folder, sync_folder, write_atomic
from adaptome.core.fingerprint import fingerprint
from adaptome.core.merging import stacks
from adaptome.core.state import adapters, find_root, refuse_sharded, tensors_of
from adaptome.interop.merge_reports import MergedFolder
from adaptome.interop.merged_tensors import Source, compare, sources

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def save_merged(
    model: nn.Module,
    folder: str | os.PathLike[str],
    names: str | Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_size: str | int = "5GB",
    processor: Any = None,
) -> MergedFolder:
    """Write the model with adapters in its weights as a folder that `from_pretrained` loads without adaptome.

    A run that was stopped is gone on with when it is called again with the same model, adapters and settings.

    Args:
        model: with adapters; it stays as it is.
        folder: made; must not be there, or be empty.
        names: which adapters; None for all that are active.
        dtype: of the floating-point tensors; None as the model has them (quantised ones: as the model computes).
        shard_size: about how many bytes a file holds; files end between layers.
        processor: a tokenizer or processor to save with it.

    Raises:
        MergeError: an adapter has no merged form or makes parameters that the model's class has no place for, the folder is taken, or the result is not finite.
        StateError: unknown name.
    """
    root, target = find_root(model), Path(folder)
    refuse_sharded(root, "merging")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MergeError(f"{target} is there and not empty.\n  Name a new folder for the merged model.")
    chosen, layers = stacks(root, names)
    tensors, untied = sources(root, layers, dtype)
    differences = compare(root, chosen, layers)
    groups = list(_groups(tensors))
    plan = [
        _written(root, {key: torch.empty(s.shape, dtype=s.dtype, device="meta") for key, s in g.items()})
        for g in groups
    ]
    shards = _shards(plan, _bytes(shard_size))
    work = target.with_name(f"{target.name}.partial")
    described = {
        "files": [[name for i in shard for name in plan[i]] for shard in shards], "of": _identity(root, chosen, dtype),
    }  # fmt: skip
    resumed = _begin(work, described)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = ["model.safetensors"] if len(files) == 1 else files
    for file, shard in zip(files, shards, strict=True):
        if not (work / file).is_file():
            header = {name: value for i in shard for name, value in plan[i].items()}
            _stream(work / file, header, (v for i in shard for v in _values(root, groups[i], plan[i])))
    total = sum(v.numel() * v.element_size() for g in plan for v in g.values())
    if len(files) > 1:
        where = {
            name: file for file, names_ in zip(files, described["files"], strict=True) for name in names_
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        write_atomic(work / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    _companions(root, work, dtype, untied, processor)
    (work / "plan.json").unlink()
    if target.exists():
        target.rmdir()
    os.replace(work, target)
    sync_folder(target.parent)
    quantised = sum(s.packed for s in tensors.values())
    return MergedFolder(
        str(target),
        tuple(chosen),
        len(files),
        resumed,
        total,
        tuple(p for p, _, _ in layers),
        quantised,
        untied,
        differences,
    )


# -- what is written -----------------------------------------------------------------------------------------------


def _groups(sources: dict[str, Source]) -> Iterator[dict[str, Source]]:
    """The tensors layer by layer: those under one numbered block together, any other alone."""
    current: dict[str, Source] = {}
    last = None
    for key, source in sources.items():
        block = re.match(r".*?\.\d+\.", key)
        name = block[0] if block else key
        if current and name != last:
            yield current
            current = {}
        current[key], last = source, name
    if current:
        yield current


def _written(root: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the keys of the file: models that transformers loads from keys of another shape are saved under those."""
    if not hasattr(root, "save_pretrained") or not hasattr(root, "config"):
        return tensors
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers of before such conversions
        return tensors
    renamed: dict[str, Tensor] = revert_weight_conversion(root, dict(tensors))
    return renamed


def _values(root: nn.Module, group: dict[str, Source], planned: dict[str, Tensor]) -> Iterator[Tensor]:
    """One layer's tensors in the planned order; made one at a time where its keys are the file's."""
    if group.keys() == planned.keys():
        for name in planned:
            yield group[name].value()
        return
    made = _written(root, {key: source.value() for key, source in group.items()})
    for name in planned:
        yield made.pop(name).contiguous()


def _shards(plan: list[dict[str, Tensor]], size: int) -> list[list[int]]:
    """Numbers of groups by file."""
    shards: list[list[int]] = [[]]
    held = 0
    for index, group in enumerate(plan):
        own = sum(v.numel() * v.element_size() for v in group.values())
        if shards[-1] and held + own > size:
            shards.append([])
            held = 0
        shards[-1].append(index)
        held += own
    return shards


def _bytes(size: str | int) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]B)\s*", size, re.IGNORECASE)
    if match is None:
        raise MergeError(f"shard_size={size!r} is no size; write '5GB' or '500MB'.")
    return int(float(match[1]) * _SIZES[match[2].upper()])


# -- the files -----------------------------------------------------------------------------------------------------


def _identity(root: nn.Module, names: Sequence[str], dtype: torch.dtype | None) -> str:
    """A hash of all that the files' bytes hang on, the base by its sampled weights."""
    digest = hashlib.sha256(json.dumps([fingerprint(root), list(names), str(dtype)], sort_keys=True).encode())
    for name, attachment in adapters(root).items():
        if name in names:
            shares = {a.strength for a in attachment.all().values()}
            digest.update(f"{name} {attachment.method!r} {sorted(shares)}".encode())
            for key, value in tensors_of(attachment).items():
                digest.update(
                    key.encode()
                    + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                )
    return digest.hexdigest()


def _begin(work: Path, described: dict[str, Any]) -> int:
    """Make the folder, or go on with one of the same plan; tells how many whole shards it holds."""
    plan = work / "plan.json"
    if plan.is_file() and json.loads(plan.read_text("utf-8")) == described:
        return len(list(work.glob("model*.safetensors")))
    if work.exists():
        if not plan.is_file() and any(work.iterdir()):
            raise MergeError(
                f"{work}, where the model would be written first, holds something else.\n  Name another folder."
            )
        remove_folder(work)
    work.mkdir(parents=True)
    write_atomic(plan, json.dumps(described))
    return 0


def _stream(path: Path, planned: dict[str, Tensor], values: Iterator[Tensor]) -> None:
    """Write a safetensors file tensor by tensor; under its name it is whole.

    The library's own writer wants all tensors at once. The format: eight bytes of the header's length, the header as JSON, the bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in planned.items():
        end = offset + value.numel() * value.element_size()
        header[name] = {
            "dtype": _CODES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    writing = path.with_name(f".{path.name}.writing")
    with writing.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, expected), value in zip(planned.items(), values, strict=True):
            assert value.shape == expected.shape and value.dtype == expected.dtype, name
            file.write(value.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(writing, path)
    sync_folder(path.parent)


def _companions(
    root: Any, work: Path, dtype: torch.dtype | None, untied: tuple[str, ...], processor: Any
) -> None:
    """The configuration, the generation's settings, and the processor's files."""
    config: Any = getattr(root, "config", None)
    if hasattr(config, "save_pretrained"):
        config = copy.deepcopy(config)
        kind = getattr(type(root), "_base", type(root))
        config.architectures = [kind.__name__]
        if dtype is not None:
            config.dtype = dtype
        if untied and getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.save_pretrained(work)
        if root.can_generate() and getattr(root, "generation_config", None) is not None:
            root.generation_config.save_pretrained(work)
    if processor is not None:
        processor.save_pretrained(work)
