"""Mix-and-match: a prefix in every attention and a scaled bottleneck beside every MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from adaptome.core.adapter import Adapter
from adaptome.core.hosts import Host
from adaptome.core.method import Method, get_method, option, register
from adaptome.forms.bottleneck import Activation


@register(
    "mam", category="hybrid", subcategory="prefix and bottleneck adapter", identity_at_init=False, merge="none", export="none",
    inference_overhead="extra modules", hosts=("module",), default_targets=("attention-blocks", "up", "down"),
    source="He et al. 2022, arXiv:2110.04366, section 4.6",
)  # fmt: skip
class MAM(Method):
    r"""Mix-and-match: a prefix in every attention and a scaled bottleneck beside every MLP.

        y = attention(q, [K; k], [V; v]),    y = MLP(x) + s (U f(D x + d) + u)

    when        text tasks, with prefixes and parallel adapters at once
    shapes      as in `prefix-tuning` and `adaptformer`, which it consists of
    init        U = 0, K and V ~ N(0, 0.02^2): the prefix takes a share of the attention from the first step on, so not as the base
    hidden      the paper's prefix is made by an MLP of this width, 800 there
    parameters  2 p (kv heads) (head width) per attention, 2 d b + b + d per MLP: 10,005,504 for RoBERTa-base, p = 30, b = 512
    merge       none: it is not linear
    source      He et al. 2022, arXiv:2110.04366, section 4.6
    """

    around_experts = True
    size: int = option(512, at_least=1, help="the bottleneck b")
    p: int = option(30, at_least=1, help="how many keys, and values, per attention")
    hidden: int = option(
        0, at_least=0, help="width of the MLP that makes the prefix; 0 trains the prefix itself"
    )
    activation: Activation = option("relu", help="f")
    scale: float | Literal["learned"] = option(4.0, help="s; 'learned' trains one number per adapter")
    dropout: float = option(0.0, at_least=0, below=1, help="on the bottleneck's input")

    def parts(self) -> dict[str, Method]:
        """The two methods that it consists of."""
        beside = {"activation": self.activation, "scale": self.scale, "dropout": self.dropout}
        return {
            "prefix": get_method("prefix-tuning", p=self.p, hidden=self.hidden),
            "bottleneck": get_method("adaptformer", size=self.size, **beside),
        }

    def part_of(self, host: Host) -> str:
        """Which of them is on this host."""
        return "bottleneck" if host.kind == "linear" or host.role == "mlp-block" else "prefix"

    def admits(self, host: Host) -> str | None:
        return self.parts()[self.part_of(host)].admits(host)

    def parameters(self, host: Host) -> int:
        return self.parts()[self.part_of(host)].parameters(host)

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        made = {key: part.shared(self._own(key, hosts)) for key, part in self.parts().items()}
        return nn.ModuleDict({key: module for key, module in made.items() if module is not None})

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return sum(part.shared_parameters(self._own(key, hosts)) for key, part in self.parts().items())

    def _own(self, key: str, hosts: Sequence[Host]) -> list[Host]:
        return [host for host in hosts if self.part_of(host) == key]

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        key = self.part_of(host)
        return self.parts()[key].adapter(host, getattr(shared, key, None))
