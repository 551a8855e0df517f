"""Parallel adapter: a small bottleneck beside a layer."""

from __future__ import annotations

from adaptome.core.method import register
from adaptome.forms.bottleneck import BottleneckMethod
from adaptome.forms.insertion import Insertion


@register(
    "parallel", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets=("up", "down"), source="He et al. 2021, arXiv:2110.04366; Hu et al. 2023, arXiv:2304.01933",
)  # fmt: skip
class Parallel(BottleneckMethod):
    r"""Parallel adapter: a small bottleneck beside a layer.

        y = layer(x) + s U f(D x)

    when        decoders, with more capacity than LoRA, beside the sub-layers
    shapes      D [b, in], U [out, b]; on a module (targets='mlp-blocks'), in = out = the width of its activations
    init        'zero': D Kaiming-uniform, U = 0: starts as the base; 'bert': both N(0, 0.02^2), as LLM-Adapters' code: does not
    use         one bypass for each linear layer named; `adaptformer` has one for a whole MLP, also where that is no module
    parameters  b (in + out) per layer: 247,463,936 for LLaMA-7B, up and down, b = 256
    merge       none: it is not linear
    source      He et al. 2021, arXiv:2110.04366 (a whole sub-layer); Hu et al. 2023, arXiv:2304.01933 (single linear layers)
    """

    def how(self) -> Insertion:
        return Insertion(parallel=True, before=True, residual=False)
