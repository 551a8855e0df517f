"""Reading one file of diffusers, kohya or LyCORIS: each key names a layer of the model, or nothing is loaded.

What a file holds for whole modules (`diff`, `w_norm`) is trained whole beside the adapter; norms alone are `norm-tuning`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptome.core.checkpoint import LoadReport, register_reader
from adaptome.core.errors import CheckpointError, KeyMismatchError
from adaptome.core.state import root_of
from adaptome.interop.images.algorithms import IA3, Algorithm, DoRA, LoHa, LoRA, Roles
from adaptome.interop.images.file import file_of, keys_of, read_file
from adaptome.interop.images.glora import GLoRA
from adaptome.interop.images.keys import dialect, split
from adaptome.interop.images.kronecker import KronA, LoKr
from adaptome.interop.images.metadata import alphas
from adaptome.interop.images.names import read_names, unknown
from adaptome.interop.images.schemes import Part
from adaptome.interop.installing import install

ALGORITHMS: tuple[Algorithm, ...] = (DoRA(), LoRA(), LoHa(), KronA(), LoKr(), IA3(), GLoRA())
#: roles of modules that are stored whole, as what is added to them: the weight's and the bias's
WHOLE = (("diff", "diff_b"), ("w_norm", "b_norm"))


def _is(kind: str) -> Callable[[Path], bool]:
    def recognises(path: Path) -> bool:
        file = file_of(path)
        return file is not None and dialect(keys_of(file)) == kind

    return recognises


def _is_any_file(path: Path) -> bool:
    """Any safetensors file that no other reader takes, so that a damaged one is told."""
    file = file_of(path)
    return file is not None and dialect(keys_of(file)) in (None, "diffusers")


@dataclass(frozen=True)
class Found:
    """What a file holds for one layer: an algorithm's tensors, or the layer's own parameters."""

    name: str
    part: Part
    roles: Roles


@register_reader("lycoris", _is("lycoris"))
@register_reader("kohya", _is("kohya"))
@register_reader("diffusers", _is_any_file)
def load_file(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, trainable: bool = False
) -> LoadReport:
    """Put the adapter of one file on a model.

    Args:
        model: a UNet, a transformer, a text encoder, or several in an `nn.ModuleDict` under the pipeline's names for them.
        folder: a .safetensors file, or a folder with diffusers' `pytorch_lora_weights.safetensors`.
        name: of the adapter.
        trainable: go on training it.

    Raises:
        CheckpointError: a subclass for each fault; the model is then as it was.
    """
    file = file_of(Path(folder))
    if file is None:
        raise CheckpointError(f"{folder} is no .safetensors file, and holds no pytorch_lora_weights.safetensors.")  # fmt: skip
    tensors, metadata = read_file(file)
    source, root = str(file), root_of(model)
    layers, whole = _placed(root, split(tensors, source), source)
    how, wanted = _adapter(root, layers, alphas(root, metadata, source), source)
    if whole and not layers and all("w_norm" in found.roles for found in whole.values()):
        how, wanted = _norms(root, whole, source)
    elif whole:
        how |= {"train": [f"={layer}" for layer in whole]}
        for layer, found in whole.items():
            wanted |= _whole(root, layer, found, source)
    numbers = sum(t.numel() for t in wanted.values())
    return install(
        model, name, how, lambda _: wanted, source=source, numbers=numbers, settings=dict(metadata), trainable=trainable
    )  # fmt: skip


def _placed(
    root: nn.Module, groups: dict[str, Roles], source: str
) -> tuple[dict[str, Found], dict[str, Found]]:
    """What the file holds by the layer here: adapters, and whole modules."""
    names = read_names(root)
    layers: dict[str, Found] = {}
    whole: dict[str, Found] = {}
    for name, roles in groups.items():
        if name not in names:
            raise unknown(name, names, root, source)
        is_whole = any(weight in roles for weight, _ in WHOLE)
        for part in names[name]:
            into = whole if is_whole else layers
            if part.path in layers or part.path in whole:
                other = (layers.get(part.path) or whole[part.path]).name
                raise KeyMismatchError(f"{source}: {other!r} and {name!r} both stand for {part.path}.\n  Nothing was loaded.")  # fmt: skip
            if is_whole and len(names[name]) > 1:
                raise KeyMismatchError(f"{source}: {name!r} is stored whole and is {len(names[name])} layers here; it is not read.")  # fmt: skip
            into[part.path] = Found(name, part, roles)
    return layers, whole


def _algorithm(found: Found, source: str) -> Algorithm:
    for algorithm in ALGORITHMS:
        if algorithm.takes(found.roles):
            return algorithm
    raise KeyMismatchError(
        f"{source}: {found.name!r} has {', '.join(sorted(found.roles))} only, which makes no adapter.\n  Nothing was loaded."
    )


def _adapter(
    root: nn.Module, layers: dict[str, Found], alpha_of: Callable[[str, int], float], source: str
) -> tuple[dict[str, Any], Roles]:
    """`attach`'s arguments and our tensors."""
    if not layers:
        return {"method": "linear-probe"}, {}
    kinds = {path: _algorithm(found, source) for path, found in layers.items()}
    if len(methods := {algorithm.method: path for path, algorithm in kinds.items()}) > 1:
        told = " and ".join(f"{method} (on {path})" for method, path in sorted(methods.items()))
        raise KeyMismatchError(f"{source} holds {told}; an adapter is of one method.\n  Nothing was loaded.")
    per_layer: dict[str, dict[str, Any]] = {}
    wanted: Roles = {}
    algorithm = next(iter(kinds.values()))
    for path, found in layers.items():
        layer, where = root.get_submodule(path), f"{source}: {found.name}"
        algorithm.check(found.roles, layer, where)
        settings, ours = _of_part(algorithm, found, layer, where)
        if "alpha" in settings and "alpha" not in found.roles:
            settings["alpha"] = alpha_of(path, settings["r"])
        per_layer[f"={path}"] = settings
        wanted |= {f"{path}.{key}": value for key, value in ours.items()}
    common = next(iter(per_layer.values()))
    return {
        "method": algorithm.method,
        "targets": list(per_layer),
        "per_layer": per_layer,
        **common,
    }, wanted


def _of_part(
    algorithm: Algorithm, found: Found, layer: nn.Module, where: str
) -> tuple[dict[str, Any], Roles]:
    """Settings and tensors of one layer; of a fused one its rows, while the first factors are shared."""
    settings, ours = algorithm.read(found.roles, layer, where)
    if found.part.rows is None and not found.part.swapped:
        return settings, ours
    if not algorithm.rows:
        raise KeyMismatchError(
            f"{where} is several layers here, or one with its halves the other way round, and {algorithm.method} has no rows to share out.\n  Nothing was loaded."
        )
    heights = {len(ours[key]) for key in algorithm.rows}
    first, end = found.part.rows or (0, max(heights))
    if len(heights) > 1 or end > max(heights) or max(heights) % 2 > (not found.part.swapped):
        raise KeyMismatchError(
            f"{where} has {sorted(heights)} rows; the layer here is rows {first} to {end}.\n  Nothing was loaded."
        )
    rows = {key: ours[key][first:end] for key in algorithm.rows}
    if found.part.swapped:
        rows = {key: torch.cat(value.chunk(2)[::-1]) for key, value in rows.items()}
    return settings, ours | rows


def _whole(root: nn.Module, path: str, found: Found, source: str) -> Roles:
    """A module's parameters as they are with what the file adds."""
    made: Roles = {}
    layer, names = root.get_submodule(path), next(pair for pair in WHOLE if pair[0] in found.roles)
    if found.part.swapped or set(found.roles) - set(names) - {"alpha"}:
        raise KeyMismatchError(f"{source}: {found.name} holds {', '.join(sorted(found.roles))}, which is no module stored whole.")  # fmt: skip
    for role, parameter in zip(names, ("weight", "bias"), strict=True):
        base, change = layer._parameters.get(parameter), found.roles.get(role)
        if base is None and change is None:
            continue
        if base is None or (change is not None and change.shape != base.shape):
            here = "none" if base is None else str(list(base.shape))
            raise KeyMismatchError(f"{source}: {role} of {found.name} has the shape {list(change.shape) if change is not None else None}, the {parameter} here {here}.\n  Nothing was loaded.")  # fmt: skip
        value = base.detach().to("cpu", torch.promote_types(base.dtype, torch.float32))
        made[f"{path}.{parameter}"] = value if change is None else value + change.to(value.dtype)
    return made


def _norms(root: nn.Module, whole: dict[str, Found], source: str) -> tuple[dict[str, Any], Roles]:
    """Norms alone: what the file adds is what `norm-tuning` trains."""
    wanted: Roles = {}
    biased = any("b_norm" in found.roles for found in whole.values())
    for path, found in whole.items():
        layer = root.get_submodule(path)
        for key, value in _whole(root, path, found, source).items():
            parameter = key.rpartition(".")[2]
            if parameter == "weight" or biased:
                wanted[key] = value - layer.get_parameter(parameter).detach().to(value)
    return {"method": "norm-tuning", "targets": [f"={path}" for path in whole], "bias": biased}, wanted
