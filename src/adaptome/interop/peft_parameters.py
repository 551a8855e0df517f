"""PEFT's LoRA on parameters by name (`target_parameters`), such as fused experts: one wrapper a parameter, nested where a module has several.

A module's last adapted parameter is the outermost wrapper, `experts.lora_A`; the one before is `experts.base_layer.lora_A`, and so on. The
experts' factors are stacked in one matrix a side: A `[r experts, in]`, expert by expert, and B `[out, r experts]`, rank by rank.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from adaptome.core.errors import KeyMismatchError
from adaptome.core.hosts import Host, host_of
from adaptome.core.state import Attachment

_WRAPPED = re.compile(r"(?P<path>.*?)(?P<inner>(\.base_layer)*)$")


def depth(host: Host, attachment: Attachment) -> int:
    """How many of PEFT's wrappers lie around the one of this parameter."""
    together = [a.host for a in attachment.adapters.values() if a.host.layer is host.layer]
    return _later(host.layer, host.parameter, [h.parameter for h in together])


def _later(module: nn.Module, parameter: str, adapted: Collection[str]) -> int:
    order = [name for name in module._parameters if name in adapted]
    return len(order) - 1 - order.index(parameter)


def parameter_of(key: str, targets: Collection[str], modules: Mapping[str, nn.Module]) -> str | None:
    """The full name of the parameter that a wrapper's path stands for; None where no parameter of the module is targeted.

    Args:
        key: 'model.layers.0.mlp.experts.base_layer'.
        targets: PEFT's `target_parameters`, by whole names or endings.
        modules: of the model.
    """
    match = _WRAPPED.fullmatch(key)
    assert match is not None  # it matches everything
    path, around = match["path"], match["inner"].count(".base_layer")
    module = modules.get(path)
    own = [] if module is None else [
        name for name in module._parameters
        if any(f"{path}.{name}" == target or f"{path}.{name}".endswith(f".{target}") for target in targets)
    ]  # fmt: skip
    if not own:
        return None
    if around >= len(own):
        raise KeyMismatchError(f"{key}: {path} has {len(own)} targeted parameters here ({', '.join(own)}).")
    return f"{path}.{own[-1 - around]}"


def stacked(host: Host, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A `[*, r, in]` and B `[*, out, r]` as PEFT stacks them."""
    if _turned(host):
        A, B = B.mT, A.mT
    if A.dim() == 2:
        return A.contiguous(), B.contiguous()
    return A.flatten(0, 1).contiguous(), B.permute(1, 2, 0).flatten(1).contiguous()


def unstacked(host: Host, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `stacked`."""
    if host.kind == "experts":
        if A.dim() != 2 or B.dim() != 2 or A.shape[0] % host.copies or B.shape[1] % host.copies:
            raise KeyMismatchError(
                f"{host.name} has {host.copies} experts; factors of {list(A.shape)} and {list(B.shape)} hold no whole rank of each."
            )
        A, B = A.unflatten(0, (host.copies, -1)), B.unflatten(1, (-1, host.copies)).permute(2, 0, 1)
    return (B.mT, A.mT) if _turned(host) else (A, B)


def _turned(host: Host) -> bool:
    """Whether PEFT takes for the outputs what are the inputs: it knows weights stored as [experts, in, out] by a mark alone."""
    marked = bool(getattr(host.layer, "is_transposed", False))
    return host.kind == "experts" and tuple(host.stored(host.parameter).shape) != host.shape and not marked


def host_at(name: str, modules: Mapping[str, nn.Module]) -> Host:
    """The host of a parameter by its full name."""
    path, _, parameter = name.rpartition(".")
    return host_of(modules[path], path, parameter)
