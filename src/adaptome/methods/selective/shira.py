"""SHiRA: train a few entries of each frozen weight, as many as a LoRA has numbers."""

from __future__ import annotations

from typing import Literal

from torch import nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.sparse import SparseAdapter, places, size


@register(
    "shira", category="selective", subcategory="automatic", structure_changed=False,
    source="Bhardwaj et al. 2024, arXiv:2406.13175",
)  # fmt: skip
class SHiRA(Method):
    r"""SHiRA: train a few entries of each frozen weight, as many as a LoRA has numbers.

        W' = W + M * D,    M a fixed mask with r (in + out) ones

    when        adapters are switched or fused at inference: few entries change, and those of two adapters seldom meet
    shapes      W [out, in]; stored are the places and the values, never D
    mask        'random', or the 'largest' (the paper's WM) or 'smallest' weights; for masks from gradients take `fish-mask`, for any other
                set `index` of the adapters
    init        values 0: starts as the base; the places are saved
    parameters  r (in + out) per layer (all where there are fewer): 33,554,432 for LLaMA-2-7B, q and v, r = 64
    special     `sparse-delta` with n = r (in + out), which hangs on the layer here
    merge       exact; export: peft-lora by SVD, its error told
    source      Bhardwaj et al. 2024, arXiv:2406.13175
    """

    r: int = option(8, at_least=1, help="rank of the LoRA that has as many numbers")
    mask: Literal["random", "largest", "smallest"] = option(
        "random", help="which entries: drawn, or by magnitude"
    )

    def count(self, host: Host) -> int:
        """Ones of one weight's mask, as a LoRA's numbers."""
        return self.r * (host.fan_in + host.fan_out) * host.copies

    def parameters(self, host: Host) -> int:
        return min(self.count(host), size(host))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SparseAdapter:
        return SparseAdapter(host, places(host, self.count(host), self.mask))
