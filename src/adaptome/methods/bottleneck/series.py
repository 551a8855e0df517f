"""Series adapter: a small bottleneck after (or before) a layer, with a residual connection."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.bottleneck import Activation, Bottleneck, Precision, hidden, parameter_count, with_hidden


@register(
    "series", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets="down", source="Houlsby et al. 2019, arXiv:1902.00751; Hu et al. 2023, arXiv:2304.01933",
)  # fmt: skip
class Series(Method):
    r"""Series adapter: a small bottleneck after (or before) a layer, with a residual connection.

        after   z = layer(x);  y = z + s U f(D z)
        before  y = layer(x + s U f(D x))

    shapes      D [b, d], U [d, b]; d = out (after) or in (before); on a module, the width of its activations
    init        'zero': D Kaiming-uniform, U = 0: starts as the base; 'bert': both N(0, 0.02^2), as LLM-Adapters' code: does not
    parameters  2 b d per layer: 67,108,864 for LLaMA-7B, down, b = 256
    merge       none: it is not linear
    source      Houlsby et al. 2019, arXiv:1902.00751; on linear layers as in Hu et al. 2023, arXiv:2304.01933
    """

    size: int = option(64, at_least=1, help="the bottleneck b")
    activation: Activation = option("tanh", help="f")
    place: Literal["after", "before"] = option("after", help="after or before the layer")
    scale: float | Literal["learned"] = option(1.0, help="s; 'learned' trains one number per adapter")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    bias: bool = option(False, help="biases in the bottleneck")
    init: Literal["zero", "bert"] = option("zero", help="'zero' starts as the base")
    precision: Precision = option(
        "input", help="of its arithmetic; LLM-Adapters' code uses float32 on any base"
    )

    def _width(self, host: Host) -> int:
        return host.fan_out if self.place == "after" else host.fan_in

    def parameters(self, host: Host) -> int:
        return parameter_count(
            self._width(host), self._width(host), self.size, self.bias, self.scale == "learned"
        )

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SeriesAdapter:
        return SeriesAdapter(self, host)


class SeriesAdapter(Bottleneck):
    """The bottleneck of one layer."""

    def __init__(self, method: Series, host: Host):
        width = method._width(host)
        super().__init__(
            host,
            width,
            width,
            method.size,
            method.activation,
            method.scale,
            method.dropout,
            method.bias,
            method.init,
            method.precision,
        )
        self.after = method.place == "after"

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        if self.after:
            output = frozen(*args, **kwargs)
            z = hidden(output)
            return with_hidden(output, z + self.bypass(z))
        x = self.input_of(args, kwargs)
        new = x + self.bypass(x)
        return frozen(
            *(new if a is x else a for a in args), **{k: new if v is x else v for k, v in kwargs.items()}
        )
