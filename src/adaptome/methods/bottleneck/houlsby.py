"""Houlsby adapters: two bottlenecks a block, behind the attention and behind the MLP."""

from __future__ import annotations

from adaptome.core.method import option, register
from adaptome.forms.bottleneck import Activation, SublayerBottleneck


@register(
    "houlsby", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets=("o", "down"), source="Houlsby et al. 2019, arXiv:1902.00751",
)  # fmt: skip
class Houlsby(SublayerBottleneck):
    r"""Houlsby adapters: two bottlenecks a block, behind the attention and behind the MLP.

        z = f(x);  y = z + s A(z),    A(z) = U g(D z + d) + u,    f each of the two, before the sum with the residual stream

    when        encoders and many tasks; more capacity than `pfeiffer`, at twice the cost
    shapes      D [b, d], d [b], U [d, b], u [d]; b = size, or round(d / reduction)
    init        'zero': D Kaiming-uniform(a = sqrt 5), the rest 0: starts as the base; 'bert': N(0, 0.02^2), near it (the paper: 0.01)
    placement   behind the last maps, hence inside the norms of post-norm models and before their dropout;
                form='parallel', place='before' with targets=('q', 'o', 'up', 'down'): f(x) + s A(x)
    norms       the paper trains them besides: `ad.attach(..., train='norms')`
    AdapterDrop as in `pfeiffer`
    parameters  2 (2 d b + b + d) per block: 2,167,584 for Swin-T, reduction = 4; with its norms 2,192,352
    merge       none: it is not linear
    source      Houlsby et al. 2019, arXiv:1902.00751
    """

    activation: Activation = option("gelu", help="g")
    bias: bool = option(True, help="biases in the bottleneck")
