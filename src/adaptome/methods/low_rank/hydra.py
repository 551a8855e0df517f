"""Hydra: a parallel and a sequential low-rank branch on each layer, merged into its weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MergeError, MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.fused import linear_with_pair, plain_weight
from adaptome.forms.low_rank import kaiming


@register(
    "hydra",
    subcategory="low-rank, parallel and sequential",
    export="low-rank",
    hosts=("linear", "experts"),
    default_targets="down",
    source="Kim et al. 2023, arXiv:2309.06922",
)
class Hydra(Method):
    r"""Hydra: a parallel and a sequential low-rank branch on each layer, merged into its weight.

        y = f(x) + s (Bp (Ap x + ap) + bp) + s (Bs (As f(x) + as) + bs),    f(x) = W x + b
        W' = W + s (P + S W),  b' = b + s (S b + Bp ap + bp + Bs as + bs),   P = Bp Ap, S = Bs As

    when        the update is to add features and rework those that the layer has
    shapes      W [out, in]; Ap [r, in], Bp [out, r]; As [q, out], Bs [out, q]; ap [r], as [q], bp, bs [out] with `bias`;
                fused experts: one of each per expert, without dropout and branch biases
    init        Bp, Bs and all branch biases 0: starts as the base; Ap, As 'kaiming' (a = sqrt 5), 'normal' N(0, 0.02^2) or 'xavier'
    parameters  r (in + out) + 2 q out, and r + q + 2 out with `bias`: 331,776 for RoBERTa-base, down, r = 4, q = 8
    special     q = 0 is LoRA, r = 0 is a sequential low-rank adapter
    merge       exact; export: peft-lora of rank r + q, exact, on layers without bias (the sequential branch changes the bias too)
    source      Kim et al. 2023, arXiv:2309.06922
    """

    r: int = option(4, at_least=0, help="rank of the parallel branch")
    q: int = option(8, at_least=0, help="rank of the sequential branch")
    scale: float = option(1.0, help="s, on both branches and their biases")
    bias: bool = option(
        False, help="branch biases (the authors' vision code has them); needs layers with a bias"
    )
    dropout: float = option(0.0, at_least=0, below=1, help="between down- and up-projection")
    init: Literal["kaiming", "normal", "xavier"] = option("kaiming", help="of the down-projections")

    def validate(self) -> None:
        if self.r + self.q == 0:
            raise MethodError("hydra: r and q are both 0; at least one branch is needed.")

    def sized(self, value: int) -> Method:
        return self.replace(r=value, q=2 * value)

    def admits(self, host: Host) -> str | None:
        needs = self.bias and host.kind in self.hosts and not host.has("bias")
        return super().admits(host) or (
            "its branch biases need a layer with a bias to merge into; set bias=False" if needs else None
        )

    def parameters(self, host: Host) -> int:
        factors = self.r * (host.fan_in + host.fan_out) + 2 * self.q * host.fan_out
        return host.copies * factors + self.bias * sum(
            rank + host.fan_out for rank in (self.r, self.q) if rank
        )

    def adapter(self, host: Host, shared: nn.Module | None = None) -> HydraAdapter:
        return HydraAdapter(self, host)


class HydraAdapter(WeightAdapter):
    """Both branches of one layer."""

    def __init__(self, method: Hydra, host: Host):
        super().__init__(host)
        self.fast = host.kind == "linear"
        self.scale, self.dropout, self.q = method.scale, method.dropout, method.q
        self.changes = (host.parameter, "bias" if self.fast else f"{host.parameter}_bias")
        for branch, rank, width in (("p", method.r, host.fan_in), ("s", method.q, host.fan_out)):
            A = nn.Parameter(_drawn(torch.empty(*host.lead, rank, width), method.init)) if rank else None
            self.register_parameter(f"A{branch}", A)
            B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, rank)) if rank else None
            self.register_parameter(f"B{branch}", B)
            biased = method.bias and rank
            self.register_parameter(f"a{branch}", nn.Parameter(torch.zeros(rank)) if biased else None)
            self.register_parameter(f"b{branch}", nn.Parameter(torch.zeros(host.fan_out)) if biased else None)

    def branch(self, name: str, h: Tensor, dropout: float = 0.0) -> Tensor | float:
        """`B (A h + a) + b` of one branch; 0 when it has rank 0."""
        A, B, a, b = (self._parameters[k + name] for k in "ABab")
        if A is None or B is None:
            return 0.0
        z = F.linear(h, A.to(h.dtype), None if a is None else a.to(h.dtype))
        return F.linear(F.dropout(z, dropout), B.to(h.dtype), None if b is None else b.to(h.dtype))

    def forward(self, frozen: Frozen, x: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        # As W costs as much as q tokens do; what it saves is y, which is kept for a backward alone
        many = torch.is_grad_enabled() and x.numel() >= 16 * self.q * x.shape[-1]
        plain = plain_weight(self.host, frozen, x) if many and not dropout else None
        if plain is not None:
            return self.in_one(x, *plain)
        y: Tensor = frozen(x)
        branches = self.branch("p", x.to(y.dtype), dropout) + self.branch("s", y, dropout)
        return y + (self.scale * self.strength) * branches

    def in_one(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Both branches as one pair A = [Ap; As W], B = [Bp, Bs] beside W, so that y need not be kept for As; and what they make of x = 0."""
        made = [(A.to(W.dtype) @ W if after else A.to(W.dtype), B) for A, B, after in self.factors()]
        pair = torch.cat([A for A, _ in made], 0), torch.cat([B for _, B in made], 1)
        y = linear_with_pair(x, W, b, pair, self.scale * self.strength)
        if b is None and not any(self._parameters[name] is not None for name in ("ap", "as", "bp", "bs")):
            return y
        zero = self.branch("p", W.new_zeros(W.shape[1])) + self.branch(
            "s", W.new_zeros(len(W)) if b is None else b
        )
        return y + (self.scale * self.strength) * zero

    def changed(self, name: str, value: Tensor) -> Tensor:
        if name == self.host.parameter:
            added = torch.zeros_like(value)
            for A, B, sequential in self.factors():
                added = added + B.to(value) @ (A.to(value) @ value if sequential else A.to(value))
            return value + self.scale * added
        # the bias is what the branches make of x = 0, where f(x) = b
        if self.host.lead:
            made = [B.to(value) @ (A.to(value) @ value[..., None]) for A, B, after in self.factors() if after]
            return value + self.scale * sum(made, torch.zeros_like(value[..., None])).squeeze(-1)
        zero = value.new_zeros(self.host.fan_in)
        return value + self.scale * (self.branch("p", zero) + self.branch("s", value))

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """A = [Ap; As W], B = s [Bp, Bs].

        Raises:
            MergeError: on a layer with a bias, which the sequential branch changes too.
        """
        if any(self.host.has(name) for name in self.changes[1:]):
            raise MergeError(
                f"hydra on {self.host.name} changes the bias as well as the weight: LoRA has no place for that.\n  Merge it into the model instead."
            )
        made = [(A.detach(), B.detach(), sequential) for A, B, sequential in self.factors()]
        down = [A @ self.host.weight().to(A.dtype) if sequential else A for A, _, sequential in made]
        return torch.cat(down, -2), torch.cat([B for _, B, _ in made], -1) * (self.scale * self.strength)

    def factors(self) -> list[tuple[Tensor, Tensor, bool]]:
        """A, B and whether it is the sequential branch, of every branch that has a rank above 0."""
        pairs = [(self._parameters[f"A{name}"], self._parameters[f"B{name}"], name == "s") for name in "ps"]
        return [(A, B, sequential) for A, B, sequential in pairs if A is not None and B is not None]


def _drawn(A: Tensor, init: str) -> Tensor:
    if init == "kaiming":
        return kaiming(A)
    if init == "normal":
        return nn.init.normal_(A, std=0.02)
    for own in A.view(-1, *A.shape[-2:]):  # each expert's
        nn.init.xavier_uniform_(own)
    return A
