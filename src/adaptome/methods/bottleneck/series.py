"""Series adapter: a small bottleneck after (or before) a layer, with a residual connection."""

from __future__ import annotations

from typing import Literal

from adaptome.core.method import option, register
from adaptome.forms.bottleneck import BottleneckMethod
from adaptome.forms.insertion import Insertion


@register(
    "series", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets="down", source="Houlsby et al. 2019, arXiv:1902.00751; Hu et al. 2023, arXiv:2304.01933",
)  # fmt: skip
class Series(BottleneckMethod):
    r"""Series adapter: a small bottleneck after (or before) a layer, with a residual connection.

        after   z = layer(x);  y = z + s U f(D z)
        before  y = layer(x + s U f(D x))

    when        decoders; the plain bottleneck, at any place
    blocks      outer='gelu', activation='gelu', bias=True, place='before', targets='blocks': x + GELU(U GELU(D x + d) + u) in front of every
                block, PeftCD's adapter (Dong et al. 2025, arXiv:2509.09572); its code starts it with init='linear', not as the base
    shapes      D [b, d], U [d, b]; d = out (after) or in (before); on a module, the width of its activations
    init        'zero': D Kaiming-uniform, U = 0: starts as the base; 'bert': both N(0, 0.02^2), as LLM-Adapters' code: does not
    parameters  2 b d per layer: 67,108,864 for LLaMA-7B, down, b = 256
    merge       none: it is not linear
    source      Houlsby et al. 2019, arXiv:1902.00751; on linear layers as in Hu et al. 2023, arXiv:2304.01933
    """

    place: Literal["after", "before"] = option("after", help="after or before the layer")

    def how(self) -> Insertion:
        return Insertion(parallel=False, before=self.place == "before", residual=True)
