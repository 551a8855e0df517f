"""Norm tuning: train the scales and shifts of the normalisation layers."""

from __future__ import annotations

from torch import nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.own_parameters import OwnParameters


@register(
    "norm-tuning", category="selective", subcategory="specific", structure_changed=False, export="none", hosts=("norm",), default_targets="norms",
    source="Zhao et al. 2023, arXiv:2312.11420",
)  # fmt: skip
class NormTuning(Method):
    r"""Norm tuning: train the scales and shifts of the normalisation layers.

        w' = w + dw,    b' = b + db

    when        the smallest change of a network with norms, alone or beside other methods
    shapes      w, b, dw, db [dim]
    init        dw = db = 0: starts as the base
    parameters  dim, and dim again where the norm has a bias: 266,240 for LLaMA-2-7B (65 norms of 4,096)
    merge       exact; export: none, LoRA has no place for norms
    source      Zhao et al. 2023, arXiv:2312.11420
    """

    bias: bool = option(True, help="train the shifts too, where there are any")

    def _names(self, host: Host) -> tuple[str, ...]:
        return tuple(n for n in ("weight", "bias") if host.has(n) and (self.bias or n == "weight"))

    def parameters(self, host: Host) -> int:
        return sum(host.stored(n).numel() for n in self._names(host))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> OwnParameters:
        return OwnParameters(host, self._names(host))
