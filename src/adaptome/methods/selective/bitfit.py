"""BitFit: train the biases that the model has, and nothing else."""

from __future__ import annotations

from torch import nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, register
from adaptome.forms.own_parameters import OwnParameters


@register(
    "bitfit", category="selective", subcategory="specific", structure_changed=False, export="none", hosts=("linear", "conv", "norm"), default_targets="biases",
    keeps_weights=True,
    source="Ben Zaken et al. 2021, arXiv:2106.10199",
)  # fmt: skip
class BitFit(Method):
    r"""BitFit: train the biases that the model has, and nothing else.

        y = W x + b + db

    when        the smallest change of a base with biases, and nothing more at inference
    shapes      b, db [out]
    init        db = 0: starts as the base
    parameters  out per layer with a bias: 102,912 for ViT-B/16; none for LLaMA, which has no biases (refused, with the reason)
    merge       exact; export: none, LoRA has no place for biases
    source      Ben Zaken et al. 2021, arXiv:2106.10199
    """

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        return reason or (None if host.has("bias") else "it has no bias")

    def parameters(self, host: Host) -> int:
        return host.stored("bias").numel()

    def adapter(self, host: Host, shared: nn.Module | None = None) -> OwnParameters:
        return OwnParameters(host, ("bias",))
