"""An adapter's numbers by hand: what it makes of a weight, and its tensors set from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import adapter as swap
from adaptome.core.adapter import check_mergeable
from adaptome.core.checkpoint import put_in
from adaptome.core.errors import KeyMismatchError, NonFiniteError, StateError, TargetError, did_you_mean
from adaptome.core.hosts import Host, host_of
from adaptome.core.state import attachment_of, state_of, tensors_of

#: the key of `set_state` for what a method's adapters share
SHARED_STATE = "shared"


def weight_of(model: nn.Module, path: str) -> Tensor:
    """W' of a layer: its weight as the active adapters make it, without merging.

    Args:
        model: with adapters.
        path: of the layer, or of one parameter of it ('model.norm.bias', 'mlp.experts.gate_up_proj').

    Returns:
        Shaped as the layer stores it; of a quantised layer the dense `[out, in]`. In the precision in which it is computed: the layer's,
        and at least float32. It has a gradient to the adapters' tensors, unless under `torch.no_grad`.

    Raises:
        TargetError: no such layer, or it has no such parameter.
        MergeError: an active adapter changes the layer's activations, or its weight depends on the sample.
    """
    host, name = _parameter_at(model, path)
    state = state_of(model)
    names = [] if state.disabled else [n for n in state.active if not state.attachments[n].merged]
    weight = name == host.parameter
    value = host.native(host.current_weight()) if weight else host.stored_or_zeros(name).detach()
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    for active in names:
        for adapter in swap.adapters_on(host.layer, active):
            weighing = check_mergeable(adapter, state.attachments[active].method.name)
            if name in weighing.changes:
                value = weighing.apply_to(name, value)
    return value


def _parameter_at(model: nn.Module, path: str) -> tuple[Host, str]:
    """The layer called so and its weight, or the layer and the parameter that the path ends in."""
    modules = dict(model.named_modules())
    above, _, last = path.rpartition(".")
    if path in modules:
        host = host_of(modules[path], path)
        name = host.parameter
    elif above in modules and last in modules[above]._parameters:
        host, name = host_of(modules[above], above), last
        if host.kind == "module" or name not in ("weight", "bias"):
            host = host_of(modules[above], above, name)
    else:
        adapted = [key for a in state_of(model).attachments.values() for key in a.all()]
        raise TargetError(
            f"{path!r} is no layer of this {type(model).__name__}.{did_you_mean(path, adapted)}"
        )
    if name not in host.layer._parameters:
        own = [key for key, value in host.layer._parameters.items() if value is not None]
        named = f"Name one of its parameters: {path}.{own[0]}." if own else "Name a layer inside it."
        raise TargetError(f"{path} ({type(host.layer).__name__}) has no {name} of its own.\n  {named}")
    return host, name


def set_state(model: nn.Module, name: str, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Set tensors of an adapter by hand: parameters, indices, frozen bases and positions.

    What is not named stays. Frozen tensors that a file usually leaves out, because settings and seed rebuild them, are saved
    once they were set. `parameters_of` gives the trained tensors by reference, to write into them directly.

    Args:
        model: with the adapter.
        name: of the adapter.
        state: target's name -> tensor's name -> value: a tensor, or what `torch.as_tensor` takes. 'shared' names what the
            method's adapters share.

    Raises:
        StateError: no adapter has that name, or it is merged.
        KeyMismatchError: an unknown target or tensor, another shape, fractions for whole numbers, or an index out of
            bounds; nothing is set then.
        NonFiniteError: NaN or infinity; nothing is set then.
    """
    attachment = attachment_of(model, name)
    if attachment.merged:
        raise StateError(
            f"{name!r} is merged: its weights would not follow.\n  ad.unmerge(model) first, and merge again."
        )
    known = tensors_of(attachment, rebuilt=True)
    given: dict[str, Tensor] = {}
    paths = [*attachment.all(), *([SHARED_STATE] if attachment.shared is not None else [])]
    for path, tensors in state.items():
        if path not in paths:
            shown = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
            raise KeyMismatchError(
                f"{name!r} has no adapter on {path!r}.{did_you_mean(path, paths)} It has them on {shown}."
            )
        for key, value in tensors.items():
            full = f"{path}.{key}" if path else key
            if full not in known:
                own = [k.removeprefix(f"{path}.") for k in known if k.startswith(f"{path}.")] or list(known)
                raise KeyMismatchError(
                    f"{attachment.method.name} on {path or 'the root'} has no tensor {key!r}.{did_you_mean(key, own)} It has {', '.join(own)}."
                )
            given[full] = _fitting(full, value, known[full])
    put_in(attachment, given, "set_state")


def _fitting(key: str, value: Any, place: Tensor) -> Tensor:
    """The value as a tensor of the place's kind."""
    made = torch.as_tensor(value).detach()
    if made.is_floating_point() and not torch.isfinite(made).all():
        raise NonFiniteError(f"{key}: the value holds NaN or infinity.")
    if made.is_floating_point() and not place.is_floating_point():
        if not torch.equal(made, made.round()):
            raise KeyMismatchError(f"{key} holds whole numbers; the value has fractions.")
        return made.to(place.dtype)
    return made.to(place.dtype) if place.is_floating_point() and not made.is_floating_point() else made
