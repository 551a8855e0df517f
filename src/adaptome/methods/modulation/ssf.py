"""SSF: scale and shift the features after every layer."""

from __future__ import annotations

from torch import nn

from adaptome.core.hosts import Host
from adaptome.core.method import register
from adaptome.forms.modulation import Modulation, ModulationMethod, Vectors, drawn


@register(
    "ssf",
    category="additive",
    subcategory="feature modulation",
    export="none",
    hosts=("linear", "conv", "norm"),
    source="Lian et al. 2022, arXiv:2210.08823, section 3.2",
)
class SSF(ModulationMethod):
    r"""SSF: scale and shift the features after every layer.

        y' = gamma * y + beta,    y = layer(x)

    when        vision models; scales and shifts that merge away
    shapes      gamma, beta [out], along the channels: the last dimension, for convolutions and batch norms the second
    init        'identity': gamma = 1, beta = 0: starts as the base; 'normal': gamma ~ N(1, 0.02^2), beta ~ N(0, 0.02^2), the authors'
    parameters  2 out per layer: 202,752 for ViT-B's 12 blocks (two norms, q, k, v, o, up, down)
    stored      g = gamma - 1, so that weight decay pulls towards the identity
    merge       exact: W' = diag(gamma) W, b' = gamma * b + beta; a layer without bias gets one, and unmerging takes it away
    export      none: LoRA has no place for a bias (with shift=False by SVD, on layers without one)
    source      Lian et al. 2022, arXiv:2210.08823, section 3.2
    """

    def parameters(self, host: Host) -> int:
        return self.vectors_on(host)

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
