"""Sparse delta: train a few entries of each frozen weight."""

from __future__ import annotations

from typing import Literal

from torch import nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.sparse import SparseAdapter, places, size


@register(
    "sparse-delta", category="selective", subcategory="automatic", structure_changed=False,
    source="Guo et al. 2020, arXiv:2012.07463; Bhardwaj et al. 2024, arXiv:2406.13175",
)  # fmt: skip
class SparseDelta(Method):
    r"""Sparse delta: train a few entries of each frozen weight.

        W' = W + M * D,    M a fixed mask with n ones

    when        few weights may change, anywhere, with no bound on the rank
    shapes      W [out, in]; stored are the n places and the n values, never D
    init        values 0: starts as the base; places drawn from the seed, or the largest or smallest weights; they are saved
    parameters  n per layer (all where there are fewer): 224,000 for LLaMA-2-7B, all-linear, n = 1000
    forward     one product with W + dW, made for the call and made again in the backward; the values' gradient is gathered from
                the weight's, so a step costs one product more than the base's and keeps the layer's input
    merge       exact; export: peft-lora by SVD, its error told
    source      Guo et al. 2020, arXiv:2012.07463 (W + M * D, its M learned); Bhardwaj et al. 2024, arXiv:2406.13175 (fixed masks)
    """

    n: int = option(1000, at_least=1, help="trained entries per weight")
    selection: Literal["random", "largest", "smallest"] = option(
        "random", help="which entries: drawn, or by magnitude"
    )

    def parameters(self, host: Host) -> int:
        return min(self.n, size(host))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SparseAdapter:
        return SparseAdapter(host, places(host, self.n, self.selection))
