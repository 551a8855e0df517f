"""DivControl: a layer stored as SVD components, some shared by all conditions and some mixed by a gate that reads the condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MethodError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import require, steered
from adaptome.forms.per_sample import per_row, refuse_per_sample


class Gate(nn.Module):
    """Instruction embedding [*, text] -> logits of the tailors [*, K], one for all layers."""

    def __init__(self, text: int, hidden: int, tailors: int):
        super().__init__()
        self.down, self.up = nn.Linear(text, hidden), nn.Linear(hidden, tailors)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.up(nn.functional.silu(self.down(embedding.to(self.down.weight))))


@register(
    "divcontrol",
    subcategory="spectral, gated components",
    export="delta",
    identity_at_init=False,
    per_sample_routing=True,
    hosts=("linear", "conv"),
    source="arXiv:2507.23620, section 3",
)
class DivControl(Method):
    r"""DivControl: a layer stored as SVD components, some shared by all conditions and some mixed by a gate that reads the condition.

        y = U_G S_G V_G x + sum_k a_k U_k S_k V_k x + b,    a = softmax of the `active` largest of Gate(e), 0 elsewhere

    when        one model for many conditions, and new ones from few samples
    shapes      U [out, r], S [r], V [r, in]: learngenes G first, then K = `tailors` groups of equal size; e [text]
    init        the r leading singular triplets of W, by size; what r leaves out of W is dropped. With a_k below 1 the layer does not
                start as the base: the paper's zero-initialised output layers hide that
    use         `ad.steer(instruction=e)`, e [text] or [batch, text], the same a for all layers; or the weights themselves,
                `ad.steer(gate=a)`, a [K] or [batch, K]. Several conditions: the mean of their embeddings
    new ones    keep this adapter attached and frozen (ad.set_trainable) and attach a LoRA of the tailor's size beside it
    parameters  r (in + out + 1) per layer, and the gate once: 448,561,152 in U and V for 13 blocks of PixArt's widths, r = 1152
    forward     one instruction: only the active components are computed; one per sample: all are, weighted
    merge       exact for one instruction: `ad.merge` inside `ad.steer(instruction=e)`
    source      DivControl: Knowledge Diversion for Controllable Image Generation, arXiv:2507.23620, section 3
    """

    r: int | None = option(None, at_least=2, help="components; the rank of the layer when not given")
    learngenes: float = option(
        0.5, at_least=0, below=1, help="share of the components that all conditions use"
    )
    tailors: int = option(
        16, at_least=1, help="K, the groups that the gate mixes (inferred: the paper does not say)"
    )
    active: int = option(8, at_least=1, help="groups that run for one instruction")
    rescale: bool = option(False, help="multiply a by `active`, so that active tailors count 1 on average")
    text: int = option(4096, at_least=1, help="width of the instruction's embedding")
    hidden: int = option(256, at_least=1, help="width of the gate")

    def validate(self) -> None:
        if self.active > self.tailors:
            raise MethodError(f"divcontrol: active = {self.active} is above tailors = {self.tailors}.")

    def rank(self, host: Host) -> int:
        """r."""
        return self.r or min(host.fan_in, host.fan_out)

    def group(self, host: Host) -> int:
        """Components of one tailor; what does not divide goes to the learngenes."""
        return int(self.rank(host) * (1 - self.learngenes) + 1e-9) // self.tailors

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason:
            return reason
        if getattr(host.layer, "groups", 1) > 1:
            return "a convolution in groups has no one matrix to factorise"
        if self.rank(host) > min(host.fan_in, host.fan_out):
            return f"r = {self.rank(host)} is above its rank, {min(host.fan_in, host.fan_out)}"
        return (
            None
            if self.group(host)
            else f"its {self.rank(host)} components are too few for {self.tailors} tailors; set tailors"
        )

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return ({"instruction": torch.linspace(-1, 1, self.text)},)

    def parameters(self, host: Host) -> int:
        return self.rank(host) * (host.fan_in + host.fan_out + 1)

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Gate(self.text, self.hidden, self.tailors)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return self.hidden * (self.text + 1) + self.tailors * (self.hidden + 1)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> DivControlAdapter:
        return DivControlAdapter(self, host, shared)


class DivControlAdapter(WeightAdapter):
    """U, S and V of one layer."""

    fast = True
    additive = True  # the base's own part is taken off whatever the value is

    def __init__(self, method: DivControl, host: Host, shared: nn.Module | None):
        super().__init__(host, shared)
        r, self.method, self.size = method.rank(host), method, method.group(host)
        self.genes = r - method.tailors * self.size
        W = host.weight()
        U, S, Vh = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        self.U, self.S = nn.Parameter(U[:, :r].contiguous()), nn.Parameter(S[:r].contiguous())
        self.V = nn.Parameter(Vh[:r].contiguous())

    def gate(self) -> tuple[Tensor, Tensor | None]:
        """The tailors' weights, and which they belong to: `[active]` and their numbers; `[K]` or `[batch, K]` and None."""
        given = steered("gate")
        if given is not None:
            if given.shape[-1] != self.method.tailors:
                raise StateError(
                    f"divcontrol: gate has {given.shape[-1]} weights for {self.method.tailors} tailors."
                )
            return given.to(self.S), None
        logits = self.shared(require("instruction", "divcontrol"))
        kept, chosen = logits.topk(self.method.active)
        share = kept.softmax(-1) * (self.method.active if self.method.rescale else 1)
        if logits.dim() == 1:
            return share.to(self.S), chosen
        return torch.zeros_like(logits).scatter(-1, chosen, share).to(self.S), None

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """V `[c, in]`, the weights `[c]` or `[batch, c]` between, and U `[out, c]`, of the c components that run."""
        share, chosen = self.gate()
        share = share.repeat_interleave(self.size, -1)
        weights = torch.cat([share.new_ones(*share.shape[:-1], self.genes), share], -1)
        if chosen is None:
            return self.V, self.S * weights, self.U
        within = torch.arange(self.size, device=chosen.device)
        tailors = self.genes + (chosen[:, None] * self.size + within).flatten()
        index = torch.cat([torch.arange(self.genes, device=chosen.device), tailors])
        return self.V[index], self.S[index] * weights, self.U[:, index]

    def product(self, x: Tensor) -> Tensor:
        """The layer's output without bias."""
        V, weights, U = self.components()
        z = self.host.reduce(x, V)
        after = z.dim() - 2 if self.host.kind == "conv" else 0
        if weights.dim() > 1:
            rows = per_row(weights, z.shape[0], "instruction")
            weights = rows.view(len(rows), *[1] * (z.dim() - 2 - after), -1, *[1] * after)
        else:
            weights = weights.view(-1, *[1] * after)
        return self.host.expand(z * weights.to(z.dtype), U)

    def forward(self, frozen: Frozen, x: Tensor) -> Tensor:
        if frozen.pristine and self.strength == 1.0:
            y, bias = self.product(x), frozen.bias()
            return y if bias is None else y + self.host.along_output(bias).to(y.dtype)
        # what came before stays, in place of the base's own part
        before: Tensor = frozen(x)
        x = x.to(before.dtype)
        return before + self.strength * (self.product(x) - self.host.reduce(x, self.host.weight()))

    def changed(self, name: str, value: Tensor) -> Tensor:
        if name != self.host.parameter:
            return value
        V, weights, U = (t.to(value.dtype) for t in self.components())
        return value - self.host.weight().to(value.dtype) + (U * weights) @ V

    def check_merge(self) -> None:
        for fact in ("gate", "instruction"):
            value = steered(fact)
            if isinstance(value, Tensor) and value.dim() > 1:
                refuse_per_sample(value, fact, self.host)
