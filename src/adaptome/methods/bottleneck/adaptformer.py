"""AdaptFormer: a scaled bottleneck beside the MLP."""

from __future__ import annotations

from typing import Literal

from adaptome.core.method import option, register
from adaptome.forms.bottleneck import Activation, SublayerBottleneck
from adaptome.forms.insertion import BesideMethod


@register(
    "adaptformer", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("module",), default_targets=("up", "down"), source="Chen et al. 2022, arXiv:2205.13535",
)  # fmt: skip
class AdaptFormer(BesideMethod, SublayerBottleneck):
    r"""AdaptFormer: a scaled bottleneck beside the MLP.

        y = MLP(x) + s A(x),    A(x) = U f(D x + d) + u,    x what the MLP reads

    when        vision transformers: a small network beside each MLP, the base's own path kept
    shapes      D [b, d], d [b], U [d, b], u [d]; b = size, or round(d / reduction)
    init        D Kaiming-uniform(a = sqrt 5), the rest 0: starts as the base
    placement   across the MLP's first and last map, so that it is right where the MLP is no module (BERT, OPT); the adapter is on
                the first. Also a whole module: targets='mlp-blocks' (mixtures of experts); ('q', 'o') are the attention's.
                x is normalised in pre-norm models, as the paper writes it; its code takes x before the norm
    AdapterDrop as in `pfeiffer`
    parameters  2 d b + b + d per block: 1,189,632 for ViT-B, b = 64
    merge       none: it is not linear
    source      Chen et al. 2022, arXiv:2205.13535
    """

    activation: Activation = option("relu", help="f")
    bias: bool = option(True, help="biases in the bottleneck")
    scale: float | Literal["learned"] = option(0.1, help="s; 'learned' trains one number per adapter")
    dropout: float = option(
        0.0, at_least=0, below=1, help="on the adapter's input; the paper trains with 0.1, behind f"
    )
