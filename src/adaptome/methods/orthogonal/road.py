"""RoAD: pairs of a layer's outputs are turned and stretched by trained 2 x 2 rotations."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register


@register(
    "road",
    subcategory="orthogonal, rotation of outputs",
    export="delta",
    hosts=("linear", "conv"),
    source="Liao and Monz 2024, arXiv:2409.00119",
)
class RoAD(Method):
    r"""RoAD: pairs of a layer's outputs are turned and stretched by trained 2 x 2 rotations.

        [y'_i]   [a_i cos t_i   -a_i sin t_i] [y_i]
        [y'_j] = [a_j sin t_j    a_j cos t_j] [y_j],    y = W x + b,  j = i + g / 2 within groups of g outputs

    when        a thousandth of the weights, merged, and requests of many adapters in one batch at the cost of a product by elements
    shapes      t, a [out / 2], [out] or [2 out] by variant 1, 2 or 4: one number for both rows of a pair, one for each row, or one for each
                entry (rows of a group after one another: first those of the cosines, then of the sines); g = `size` divides out
    init        t = 0, a = 1: starts as the base
    parameters  variant * out per layer: 262,144 for LLaMA-2-7B, q and v, variant 1; 1,359,872 on all-linear, 0.02 % of it
    merge       exact: the rows of W, and the bias, turned
    export      peft-lora by SVD, its error told; refused on a layer whose bias is turned too
    source      Liao and Monz 2024, arXiv:2409.00119
    """

    variant: Literal[1, 2, 4] = option(1, help="numbers a pair of outputs has, in halves: 1, 2 or 4")
    size: int = option(
        64, at_least=2, help="g: outputs g / 2 apart are turned together; it divides the layer's outputs"
    )

    def validate(self) -> None:
        if self.size % 2:
            raise MethodError(f"road: size = {self.size} is odd: its halves are turned together.")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        together = host.fan_out // getattr(host.layer, "groups", 1)
        if reason is None and together % self.size:
            reason = f"size = {self.size} does not divide its {together} outputs (of each group of channels)"
        return reason

    @classmethod
    def size_setting(cls) -> str | None:
        return None  # the width of a group costs nothing

    def parameters(self, host: Host) -> int:
        return self.variant * host.fan_out

    def adapter(self, host: Host, shared: nn.Module | None = None) -> RoADAdapter:
        return RoADAdapter(self, host)


class RoADAdapter(WeightAdapter):
    """Angles and stretches of one layer."""

    fast = True

    def __init__(self, method: RoAD, host: Host):
        super().__init__(host)
        self.changes = ("weight", "bias")
        self.variant, self.g = method.variant, method.size
        count = method.variant * host.fan_out // 2
        self.t, self.a = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.ones(count))

    def entries(self) -> tuple[Tensor, Tensor]:
        """a cos t and a sin t of every output, each `[out]`."""
        t: Tensor = self.t
        a: Tensor = self.a
        half = self.g // 2
        if self.variant == 1:
            t, a = (v.view(-1, 1, half).expand(-1, 2, -1).flatten() for v in (t, a))
        elif self.variant == 4:
            (t, t_sine), (a, a_sine) = (v.view(-1, 2, self.g).unbind(1) for v in (t, a))
            return (a * t.cos()).flatten(), (a_sine * t_sine.sin()).flatten()
        return a * t.cos(), a * t.sin()

    def turned(self, y: Tensor) -> Tensor:
        """The pairs of the last dimension, `[..., out]`, turned."""
        cosine, sine = (v.to(y.dtype) for v in self.entries())
        first, second = y.unflatten(-1, (-1, 2, self.g // 2)).unbind(-2)
        return y * cosine + torch.stack([-second, first], -2).flatten(-3) * sine

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        channels = -1 - len(self.host.layer.kernel_size) if self.host.kind == "conv" else -1
        turned = self.turned(y.transpose(channels, -1)).transpose(channels, -1)
        return turned if self.strength == 1.0 else torch.lerp(y, turned, self.strength)

    def changed(self, name: str, value: Tensor) -> Tensor:
        return self.turned(value.mT).mT if value.dim() > 1 else self.turned(value)
