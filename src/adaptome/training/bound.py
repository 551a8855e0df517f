"""How near a run comes to the least work: the matrix products that no training can leave out, at the rate that the machine reaches.

A token costs 2 operations a weight in the forward, 2 for the gradient of the layer's input, and 2 more only where the weight itself trains: 4
for a frozen base against 6 for full fine-tuning. Attention, norms, adapters, the optimizer and all that waits for memory count as nothing,
so that no run reaches 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.nodes import is_linear


def matmul_rate(
    dtype: torch.dtype = torch.float32,
    size: int = 1024,
    seconds: float = 0.1,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Operations per second of a square product on the CPU now: the best of those that fit into the time, by a clock `now`."""
    a = torch.randn(size, size).to(dtype)
    best, until = 0.0, now() + seconds
    while best == 0.0 or now() < until:
        began = now()
        a @ a
        best = max(best, 2 * size**3 / max(now() - began, 1e-9))
    return best


def operations(model: nn.Module) -> int:
    """The least operations a token: 4 for each weight of a frozen linear layer, 6 for each of one that trains."""
    weights = [m._parameters.get("weight") for m in model.modules() if is_linear(m)]
    return sum(
        weight.numel() * (6 if weight.requires_grad else 4) for weight in weights if weight is not None
    )


class Pace:
    """Tokens, padding among them, that training steps have seen, and the seconds of their forwards and backwards."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def see(self, inputs: Mapping[str, Any], seconds: float) -> None:
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor):
            self.tokens, self.seconds = self.tokens + ids.numel(), self.seconds + seconds

    def share(self, model: nn.Module) -> float | None:
        """The least work of these steps over what the machine's matrix products would do in their time.

        None where nothing is counted: inputs without token ids, quantised weights, or an accelerator, whose steps end after they are timed.
        """
        weights = [p for p in model.parameters() if p.dim() == 2]
        if not self.tokens or any(not p.is_floating_point() or p.device.type != "cpu" for p in weights):
            return None
        rate = matmul_rate(weights[0].dtype, size=512, seconds=0.03)
        return operations(model) * self.tokens / self.seconds / rate
