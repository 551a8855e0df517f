"""What one adapter changes of its layer's weight."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptome.core.adapter import Adapter, WeightAdapter
from adaptome.core.errors import MergeError


@torch.no_grad()
def update_of(adapter: Adapter) -> Tensor:
    """`W' - W [*, out, in]` of the base's own weight, in the base's precision (at least float32) and with the adapter's strength,
    whatever else is on the layer.

    Raises:
        MergeError: as `weight_adapter`.
    """
    adapter, host = weight_adapter(adapter), adapter.host
    W = host.weight()
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    return adapter.strength * (adapter.changed(host.parameter, W) - W)


def weight_adapter(adapter: Adapter) -> WeightAdapter:
    """The adapter, made sure to change its layer's weight.

    Raises:
        MergeError: it changes activations, or what it makes of the weight depends on the sample.
    """
    if not isinstance(adapter, WeightAdapter) or adapter.host.parameter not in adapter.changes:
        raise MergeError(
            f"{type(adapter).__name__} on {adapter.host.name} changes no weight: there is no change of heads or directions to rank."
        )
    adapter.check_merge()
    return adapter
