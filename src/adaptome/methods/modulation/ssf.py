"""SSF: scale and shift the features after every layer."""

from __future__ import annotations

from torch import nn

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.modulation import Init, Modulation, Vectors, drawn, refusal


@register(
    "ssf",
    category="additive",
    subcategory="feature modulation",
    export="none",
    hosts=("linear", "conv", "norm"),
    source="Lian et al. 2022, arXiv:2210.08823, section 3.2",
)
class SSF(Method):
    r"""SSF: scale and shift the features after every layer.

        y' = gamma * y + beta,    y = layer(x)

    shapes      gamma, beta [out], along the channels: the last dimension, for convolutions and batch norms the second
    init        'identity': gamma = 1, beta = 0: starts as the base; 'normal': gamma ~ N(1, 0.02^2), beta ~ N(0, 0.02^2), the authors'
    parameters  2 out per layer: 202,752 for ViT-B's 12 blocks (two norms, q, k, v, o, up, down)
    stored      g = gamma - 1, so that weight decay pulls towards the identity
    merge       exact: W' = diag(gamma) W, b' = gamma * b + beta; a layer without bias gets one, and unmerging takes it away
    export      none: LoRA has no place for a bias (with shift=False by SVD, on layers without one)
    source      Lian et al. 2022, arXiv:2210.08823, section 3.2
    """

    scale: bool = option(True, help="train gamma")
    shift: bool = option(True, help="train beta; needs layers with a place for a bias, which RMS norms lack")
    init: Init = option("identity", help="'identity' starts as the base; 'normal' as the authors' code")

    def validate(self) -> None:
        if not (self.scale or self.shift):
            raise MethodError("ssf: scale and shift are both off; nothing would train.")

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or refusal(host, self.shift)

    def parameters(self, host: Host) -> int:
        return (self.scale + self.shift) * host.fan_out

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SSFAdapter:
        return SSFAdapter(self, host)


class SSFAdapter(Modulation):
    """g and beta of one layer."""

    def __init__(self, method: SSF, host: Host):
        super().__init__(host, method.scale, method.shift)
        self.g = drawn(host.fan_out, method.init) if method.scale else None
        self.beta = drawn(host.fan_out, method.init) if method.shift else None

    def vectors(self) -> Vectors:
        return self.g, self.beta
