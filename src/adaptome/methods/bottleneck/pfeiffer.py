"""Pfeiffer adapter: one bottleneck a block, behind the MLP."""

from __future__ import annotations

from adaptome.core.method import option, register
from adaptome.forms.bottleneck import Activation, SublayerBottleneck


@register(
    "pfeiffer", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets="down", source="Pfeiffer et al. 2021, arXiv:2005.00247",
)  # fmt: skip
class Pfeiffer(SublayerBottleneck):
    r"""Pfeiffer adapter: one bottleneck a block, behind the MLP.

        z = MLP(x);  y = z + s A(z),    A(z) = U f(D z + d) + u,    before the sum with the residual stream

    when        encoders and many tasks at half of `houlsby`'s cost; what `adapter-fusion` fuses
    shapes      D [b, d], d [b], U [d, b], u [d]; b = size, or round(d / reduction)
    init        D Kaiming-uniform(a = sqrt 5), the rest 0: starts as the base
    placement   behind the MLP's last map, hence inside the norm of post-norm models; form='parallel', place='before' with
                targets=('up', 'down'): MLP(x) + s A(x); the attention's are 'o' and ('q', 'o'). Not AdapterHub's variant for
                post-norm models, which feeds A what the norm has made of the sum
    AdapterDrop `drop=n` trains with the first 0 to n blocks skipped, drawn anew each step; `ad.steer(drop=n)` skips them at inference,
                and `layers='n:'` never has them. Leave a block that trains; under DDP: find_unused_parameters=True
    parameters  2 d b + b + d per block: 156,768 for AST, reduction = 96
    merge       none: it is not linear
    source      Pfeiffer et al. 2021, arXiv:2005.00247; AdapterDrop: Rücklé et al. 2021, arXiv:2010.11918
    """

    activation: Activation = option("relu", help="f")
    bias: bool = option(True, help="biases in the bottleneck")
