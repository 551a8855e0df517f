"""AdapterFusion: attention over adapters that are trained already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen, adapters_on
from adaptome.core.errors import StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.bottleneck import affine
from adaptome.forms.insertion import Droppable, Inserted, hidden, with_hidden


@register(
    "adapter-fusion", category="additive", subcategory="bottleneck adapter, composition", identity_at_init=False, merge="none", export="none",
    inference_overhead="extra modules", hosts=("linear", "module"), default_targets="down", needs="the adapters that it fuses",
    source="Pfeiffer et al. 2021, arXiv:2005.00247",
)  # fmt: skip
class AdapterFusion(Method):
    r"""AdapterFusion: attention over adapters that are trained already.

        z = layer(x);  a_j = A_j(z);  y = z + V sum_j w_j a_j,    w = softmax_j((Q z) . (K a_j))

    when        several tasks' adapters on one base exist, and a new task is to draw on all of them
    shapes      Q, K, V [d, d]; A_j the adapters named, without their residual
    init        Q, K ~ N(0, 0.02^2), V = I: starts near the mean of the adapters
    use         attach or load the adapters first (`pfeiffer`, `houlsby`, `series`, `compacter`: all that read a layer's output), freeze them
                (`ad.set_trainable(model, "qa", False)`; loaded ones are), then `ad.attach(model, "adapter-fusion", "fused",
                adapters=("qa", "nli"), targets="down")` where they sit. It reads them whether they are active or not; beneath it
                they do not run by themselves
    saving      holds Q, K and V alone: load the adapters first, under the same names
    parameters  3 d^2 per layer: 21,233,664 for BERT-base, behind the MLPs
    merge       none: it is not linear
    source      Pfeiffer et al. 2021, arXiv:2005.00247, section 3; no biases, as there: a key's would cancel in the softmax
    """

    around_experts = True
    adapters: tuple[str, ...] = option((), help="names of the adapters that are fused")

    def admits(self, host: Host) -> str | None:
        if not self.adapters:
            return "adapters is empty: name those to fuse, as in adapters=('qa', 'nli')"
        for name in self.adapters:
            found = adapters_on(host.layer, name)
            if not found:
                return f"no adapter called {name!r} is on it; attach or load it there first"
            if not all(isinstance(a, Inserted) and not a.how.before for a in found):
                return f"{name!r} is not a bottleneck that reads the layer's output"
        return super().admits(host)

    def parameters(self, host: Host) -> int:
        return 3 * host.fan_out**2

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        return Fusion(self, host)


class Fusion(Droppable):
    """Q, K and V of one layer. A share of its effect is counted from the layer without the adapters that it fuses."""

    def __init__(self, method: AdapterFusion, host: Host):
        super().__init__(host)
        d = host.fan_out
        self.names = method.adapters
        self.Q, self.K = nn.Parameter(torch.randn(d, d) * 0.02), nn.Parameter(torch.randn(d, d) * 0.02)
        self.V = nn.Parameter(torch.eye(d))

    def fused(self) -> list[Inserted]:
        """The adapters, as they are on the layer now.

        Raises:
            StateError: one of them was detached.
        """
        found: list[Any] = [a for name in self.names for a in adapters_on(self.host.layer, name)]
        if len(found) != len(self.names):
            there = {name for name in self.names if adapters_on(self.host.layer, name)}
            raise StateError(
                f"adapter-fusion on {self.host.name} fuses {list(self.names)}, of which only {sorted(there)} are on the layer.\n"
                "  Attach or load the others again, or detach the fusion."
            )
        return found

    def weights(self, z: Tensor, made: Tensor) -> Tensor:
        """The softmax over the adapters: z `[..., d]`, made `[..., adapters, d]`, the result `[..., adapters]`."""
        # K moved to the query's side: one product however many adapters
        query = affine(z, self.Q, None) @ self.K.to(z.dtype)
        return (made @ query[..., None]).squeeze(-1).softmax(-1)

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        fused = self.fused()
        below = Frozen(frozen.layer, tuple(a for a in frozen.below if a not in fused))
        output = below(*args, **kwargs)
        if self.skipped():
            return output
        z = hidden(output)
        made = torch.stack([adapter.bypass(z) for adapter in fused], -2)
        mixed = (self.weights(z, made)[..., None, :] @ made).squeeze(-2)
        return with_hidden(output, z + self.share(affine(mixed, self.V, None)))
