"""VB-LoRA: all factors of all layers are put together from one bank of short trained vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank


class Bank(nn.Module):
    """The vectors that all layers share."""

    def __init__(self, method: VBLoRA):
        super().__init__()
        vectors = torch.empty(method.bank, method.size).uniform_(-method.bound, method.bound)
        self.vectors = nn.Parameter(vectors)


@register(
    "vb-lora",
    subcategory="low-rank, shared vectors",
    export="low-rank",
    identity_at_init=False,
    budget_setting="r",
    source="Li et al. 2024, arXiv:2405.15179",
)
class VBLoRA(Method):
    r"""VB-LoRA: all factors of all layers are put together from one bank of short trained vectors.

        y = W x + B A x;    each piece of b numbers of A's rows and B's columns is  sum_j softmax(l)_j v_j  over the top_k of its logits l

    when        many adapters have to be stored: a trained one is its bank, and top_k indices and weights for every piece
    shapes      v [bank, b]; logits of A [r, in / b, bank], of B [out / b, r, bank]; b = `size` divides in and out
    init        v ~ U(-bound, bound), logits ~ N(0, std^2): the update starts small, but not at 0
    parameters  bank b, and r (in + out) bank / b per layer while it trains: 2,162,688 for LLaMA-2-7B, q and v, r = 4, bank 256, b = 256
    merge       exact; export: peft-lora, exact
    source      Li et al. 2024, arXiv:2405.15179
    """

    r: int = option(4, at_least=1, help="rank of the update")
    bank: int = option(256, at_least=1, help="vectors that the layers share")
    size: int = option(64, at_least=1, help="b, the length of a vector; divides the sides of every layer")
    top_k: int = option(2, at_least=1, help="vectors that a piece is a mixture of")
    bound: float = option(0.02, above=0, help="of the vectors at the start")
    std: float = option(0.1, above=0, help="of the logits at the start")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def validate(self) -> None:
        if self.top_k > self.bank:
            raise MethodError(f"vb-lora: top_k = {self.top_k} is above bank = {self.bank}.")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and (host.fan_in % self.size or host.fan_out % self.size):
            reason = f"size = {self.size} does not divide both its sides, {host.fan_in} and {host.fan_out}"
        return reason

    def parameters(self, host: Host) -> int:
        pieces = self.r * (host.fan_in + host.fan_out) // self.size
        return pieces * self.bank * host.copies

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Bank(self)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return self.bank * self.size

    def adapter(self, host: Host, shared: nn.Module | None = None) -> VBLoRAAdapter:
        return VBLoRAAdapter(self, host, shared)


class VBLoRAAdapter(LowRank):
    """The logits of one layer; the vectors are in the bank."""

    def __init__(self, method: VBLoRA, host: Host, shared: nn.Module | None):
        super().__init__(host, dropout=method.dropout, shared=shared)
        self.top_k = method.top_k
        b, r, std = method.size, method.r, method.std
        self.A = nn.Parameter(torch.randn(*host.lead, r, host.fan_in // b, method.bank) * std)
        self.B = nn.Parameter(torch.randn(*host.lead, host.fan_out // b, r, method.bank) * std)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.mixed(self.A).flatten(-2), self.mixed(self.B).mT.flatten(-3, -2)

    def mixed(self, logits: Tensor) -> Tensor:
        """The pieces `[..., b]` of logits `[..., bank]`."""
        best = logits.topk(self.top_k, dim=-1)
        vectors = self.shared.vectors.to(logits.device)
        return (best.values.softmax(-1)[..., None] * vectors[best.indices]).sum(-2)
