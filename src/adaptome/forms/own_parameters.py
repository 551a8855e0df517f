"""Training some of the layer's own small parameters: they stay frozen, and an offset that starts at zero is added.

With an offset the gradient is that of the parameter itself, the base keeps its bits, and weight decay pulls towards the base.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptome.core.adapter import WeightAdapter
from adaptome.core.hosts import Host


class OwnParameters(WeightAdapter):
    """Offsets of the parameters `names` of a layer, each of the parameter's shape, starting at 0."""

    additive = True

    def __init__(self, host: Host, names: tuple[str, ...]):
        super().__init__(host)
        self.changes = names
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(host.stored(name).shape)))

    def changed(self, name: str, value: Tensor) -> Tensor:
        return value + self.get_parameter(name).to(value.dtype)
