"""MLP gate: one trained number for each MLP, by which blocks that contribute little can be found and skipped (ADA-DEFT)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register


@register(
    "mlp-gate", category="additive", subcategory="layer gating", merge="none", export="none", identity_at_init=False,
    inference_overhead="extra modules", hosts=("module", "linear"), default_targets="mlp-blocks", source="Runwal et al. 2024, arXiv:2402.01911",
)  # fmt: skip
class MLPGate(Method):
    r"""MLP gate: one trained number for each MLP, by which blocks that contribute little can be found and skipped.

        h + g MLP(h),    g = sigmoid(a)

    when        beside a method and the objective `activation-density` with `gated: true`; `sparsity.skip_mlps` then removes MLPs
    shapes      a, g: scalars
    init        a = ln(start / (1 - start)): g = start, 0.99; so it starts near the base, not as it
    parameters  1 per MLP
    merge       none: `skip_mlps` is its use
    source      the idea of learned weights of layers and of skipping by them is ADA-DEFT's, Runwal et al. 2024, arXiv:2402.01911; its formula
                could not be verified, and this one is ours
    """

    start: float = option(0.99, above=0, below=1, help="the gates at first")

    def parameters(self, host: Host) -> int:
        return 1

    def adapter(self, host: Host, shared: nn.Module | None = None) -> MLPGateAdapter:
        return MLPGateAdapter(self, host)


class MLPGateAdapter(Adapter):
    """The gate of one MLP."""

    exact = True

    def __init__(self, method: MLPGate, host: Host):
        super().__init__(host)
        self.a = nn.Parameter(torch.tensor([math.log(method.start / (1 - method.start))]))

    def gate(self) -> Tensor:
        """g, a scalar."""
        return self.a.sigmoid()[0]

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        made = frozen(*args, **kwargs)
        if isinstance(made, tuple):  # a mixture of experts gives its routing too
            return (made[0] * self.gate().to(made[0].dtype), *made[1:])
        return made * self.gate().to(made.dtype)
