"""GraLoRA: the weight is cut into k x k blocks, and every block has a low-rank update of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank, kaiming


@register(
    "gralora",
    subcategory="low-rank, block-wise",
    export="low-rank",
    source="Jung et al. 2025, arXiv:2505.20355",
)
class GraLoRA(Method):
    r"""GraLoRA: the weight is cut into k x k blocks, and every block has a low-rank update of its own.

        dW[j, n] = s B_jn A_nj,    s = alpha / (r + hybrid_r);    with hybrid_r: + s B A of LoRA over the whole

    when        a high rank: of LoRA's count, but of rank k r, and outliers of one input group stay in its blocks
    shapes      A [k, r, in / k], B [k, out / k, r]: A_nj [r / k, in / k] is chunk j of the rows of A[n], B_jn chunk n of the columns of B[j];
                k divides r, in and out; `A_all [hybrid_r, in]`, `B_all [out, hybrid_r]`
    init        A, A_all ~ U(-1/sqrt(w), 1/sqrt(w)) over their w columns, B, B_all = 0: starts as the base
    parameters  (r + hybrid_r) (in + out) per layer: 33,554,432 for LLaMA-2-7B, q and v, r = 64
    forward     two products of k blocks each: r (in + out) a token, as LoRA's
    merge       exact; export: peft-lora of rank k r + hybrid_r, exact
    source      Jung et al. 2025, arXiv:2505.20355
    """

    r: int = option(32, at_least=1, help="of all k blocks of a row or column together")
    k: int = option(2, at_least=1, help="blocks on either side; divides r, in and out")
    hybrid_r: int = option(0, at_least=0, help="rank of a LoRA over the whole weight beside the blocks")
    alpha: float = option(64.0, help="the update is scaled by alpha / (r + hybrid_r)")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def validate(self) -> None:
        if self.r % self.k:
            raise MethodError(
                f"gralora: r = {self.r} does not divide by k = {self.k}, the blocks that share it."
            )

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and (host.fan_in % self.k or host.fan_out % self.k):
            reason = f"k = {self.k} does not divide both its sides, {host.fan_in} and {host.fan_out}"
        return reason

    def parameters(self, host: Host) -> int:
        return (self.r + self.hybrid_r) * (host.fan_in + host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> GraLoRAAdapter:
        return GraLoRAAdapter(self, host)


class GraLoRAAdapter(LowRank):
    """A and B of one layer, and those of the LoRA beside."""

    def __init__(self, method: GraLoRA, host: Host):
        super().__init__(host, method.alpha / (method.r + method.hybrid_r), method.dropout)
        self.k, k, r, whole = method.k, method.k, method.r, method.hybrid_r
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, k, r, host.fan_in // k)))
        self.B = nn.Parameter(torch.zeros(*host.lead, k, host.fan_out // k, r))
        self.A_all = nn.Parameter(kaiming(torch.empty(*host.lead, whole, host.fan_in))) if whole else None
        self.B_all = nn.Parameter(torch.zeros(*host.lead, host.fan_out, whole)) if whole else None

    def factors(self) -> tuple[Tensor, Tensor]:
        """Those of the whole, of rank k r: A on a block diagonal, and B's columns where its rows are."""
        k, eye = self.k, torch.eye(self.k, dtype=self.A.dtype, device=self.A.device)
        A = torch.einsum("...nji,nm->...njmi", self.A, eye).flatten(-2).flatten(-3, -2)
        B = torch.einsum("...jons,jm->...jonms", self.B.unflatten(-1, (k, -1)), eye.to(self.B.dtype))
        pair = A, B.flatten(-3).flatten(-3, -2)
        if self.A_all is None or self.B_all is None:
            return pair
        return torch.cat([pair[0], self.A_all], -2), torch.cat([pair[1], self.B_all], -1)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        if self.host.kind != "linear":
            return super().add_product(y, x)
        k, x = self.k, F.dropout(x.to(y.dtype), self.dropout, self.training)
        z = torch.einsum("...ni,nri->...nr", x.unflatten(-1, (k, -1)), self.A.to(x.dtype))
        z = (
            z.unflatten(-1, (k, -1)).transpose(-2, -3).flatten(-2)
        )  # what goes to block j of the outputs, from every n
        added = torch.einsum("...jr,jor->...jo", z, self.B.to(x.dtype)).flatten(-2)
        y = self.host.add(y, added, self.scale * self.strength)
        if self.A_all is None or self.B_all is None:
            return y
        return self.host.add_expanded(
            y, self.host.reduce(x, self.A_all), self.B_all, self.scale * self.strength
        )
