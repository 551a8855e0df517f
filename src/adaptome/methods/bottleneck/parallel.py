"""Parallel adapter: a small bottleneck beside a layer."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.bottleneck import Activation, Bottleneck, Precision, hidden, parameter_count, with_hidden


@register(
    "parallel", category="additive", subcategory="bottleneck adapter", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets=("up", "down"), source="He et al. 2021, arXiv:2110.04366; Hu et al. 2023, arXiv:2304.01933",
)  # fmt: skip
class Parallel(Method):
    r"""Parallel adapter: a small bottleneck beside a layer.

        y = layer(x) + s U f(D x)

    shapes      D [b, in], U [out, b]; on a module (targets='mlp-blocks'), in = out = the width of its activations
    init        'zero': D Kaiming-uniform, U = 0: starts as the base; 'bert': both N(0, 0.02^2), as LLM-Adapters' code: does not
    parameters  b (in + out) per layer: 247,463,936 for LLaMA-7B, up and down, b = 256
    merge       none: it is not linear
    source      He et al. 2021, arXiv:2110.04366 (a whole sub-layer); Hu et al. 2023, arXiv:2304.01933 (single linear layers)
    """

    size: int = option(64, at_least=1, help="the bottleneck b")
    activation: Activation = option("tanh", help="f")
    scale: float | Literal["learned"] = option(1.0, help="s; 'learned' trains one number per adapter")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    bias: bool = option(False, help="biases in the bottleneck")
    init: Literal["zero", "bert"] = option("zero", help="'zero' starts as the base")
    precision: Precision = option(
        "input", help="of its arithmetic; LLM-Adapters' code uses float32 on any base"
    )

    def parameters(self, host: Host) -> int:
        return parameter_count(host.fan_in, host.fan_out, self.size, self.bias, self.scale == "learned")

    def adapter(self, host: Host, shared: nn.Module | None = None) -> ParallelAdapter:
        return ParallelAdapter(self, host)


class ParallelAdapter(Bottleneck):
    """The bottleneck of one layer."""

    def __init__(self, method: Parallel, host: Host):
        super().__init__(
            host,
            host.fan_in,
            host.fan_out,
            method.size,
            method.activation,
            method.scale,
            method.dropout,
            method.bias,
            method.init,
            method.precision,
        )

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        output = frozen(*args, **kwargs)
        return with_hidden(output, hidden(output) + self.bypass(self.input_of(args, kwargs)))
