"""The plain adapters that Polyhistor's are for one task, without the hypernetworks."""

from __future__ import annotations

import functools

import torch
from torch import nn

from adaptome.core.attaching import attach
from adaptome.core.errors import MethodError
from adaptome.core.model import detach
from adaptome.core.plan import Plan
from adaptome.core.state import attachment_of, find_root, rearrange, state_of
from adaptome.forms.branches import known_task
from adaptome.methods.bottleneck.polyhistor import Hypernetworks, Polyhistor


def plain(model: nn.Module, task: str, name: str = "default") -> Plan:
    """Replace the adapters by the plain ones that they are for one task, so that the hypernetworks can go; see `series`.

    Args:
        model: with polyhistor attached.
        task: whose adapters stay.
        name: of the adapter, before and after. What trains besides (norms, a head) stays as it is.

    Raises:
        MethodError: the adapter is of another method.
        StateError: no adapter has the name, or the method no such task.
    """
    old, state = attachment_of(model, name), state_of(model)
    method, order = old.method, list(state.active)
    if not isinstance(method, Polyhistor) or not isinstance(old.shared, Hypernetworks):
        raise MethodError(
            f"plain: {name!r} is {method.name}, which generates no adapters; polyhistor and polyhistor-lite do."
        )
    known_task(method.name, task, method.tasks)
    per_layer = {f"={path}": {"size": a.host.fan_out // method.rho} for path, a in old.adapters.items()}
    detach(model, name)
    made = attach(
        model, "series", name, targets=list(per_layer), per_layer=per_layer, train=old.train, seed=old.seed, dtype=old.dtype,
        activation=method.activation, bias=method.bias,
    )  # fmt: skip
    new = attachment_of(model, name)
    with torch.no_grad():
        for path, adapter in old.adapters.items():
            values = dict(adapter.named_parameters())
            for key, (K, factors) in zip("DU", old.shared.matrices(adapter.host, task), strict=True):
                T = functools.reduce(torch.matmul, factors)
                values[key] = nn.Parameter(T if K is None else torch.kron(K, T))
            for key, value in values.items():
                new.adapters[path].get_parameter(key).copy_(value)
            new.adapters[path].strength = adapter.strength
        for path, head in old.heads.items():
            new.heads[path].load_state_dict(head.state_dict())
    state_of(model).active = order
    rearrange(find_root(model))
    return made
