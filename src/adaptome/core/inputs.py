"""What layers are given when a model runs: gathered by hooks, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.core.hosts import Host, first_input

Run = Callable[[nn.Module, Any], object]


def run(model: nn.Module, batch: Any) -> object:
    """The model on a batch: a mapping by names, a tuple or list by position, anything else as it is."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def collect(
    model: nn.Module,
    batches: Iterable[Any],
    hosts: Sequence[Host],
    run: Run,
    update: Callable[[Any, Tensor], Any],
) -> dict[str, Any]:
    """What `update(before or None, x [tokens, in])` makes of every host's inputs, by name; once for hosts that are given the same.

    Tokens that a batch's `attention_mask` hides are left out; x is in at least float32.

    Raises:
        DataError: a layer saw no input.
    """
    found: dict[str, Any] = {}
    last: tuple[Any, ...] = (None, 0, None, None)
    mask: Tensor | None = None

    def watch(host: Host) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal last
            x, before = first_input(module, args, kwargs), found.get(host.name)
            if not (x is last[0] and x._version == last[1] and before is last[2]):
                shown = x[mask] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
                if not len(shown):  # an expert that no token was routed to
                    return
                exact = torch.promote_types(x.dtype, torch.float32)
                last = (x, x._version, before, update(before, shown.detach().to(exact)))
            found[host.name] = last[3]

        return see

    hooks = [host.layer.register_forward_pre_hook(watch(host), with_kwargs=True) for host in hosts]
    try:
        with torch.no_grad():
            for batch in batches:
                shown = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                mask = None if shown is None else shown.bool()
                run(model, batch)
                last = (None, 0, None, None)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [host.name for host in hosts if host.name not in found]
    if missing:
        raise DataError(
            f"the batches reached {len(hosts) - len(missing)} of {len(hosts)} layers; {missing[0]} saw no input."
        )
    return found


def gram(before: Tensor | None, x: Tensor) -> Tensor:
    """`X X^T` `[in, in]` in float64, with that of the batches before: an `update` for `collect`."""
    x = x.double()
    made = x.t() @ x
    return made if before is None else before + made
