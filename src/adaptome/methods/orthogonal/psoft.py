"""PSOFT: the leading singular directions of each weight are turned by one small trained rotation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank
from adaptome.forms.rotation import cayley, skew


@register(
    "psoft",
    subcategory="orthogonal, principal subspace",
    export="low-rank",
    source="Wu et al. 2025, arXiv:2505.11235",
)
class PSOFT(Method):
    r"""PSOFT: the leading singular directions of each weight are turned by one small trained rotation.

        W' = W + B (diag(b) R diag(a) - I) A,    B = U_r S_r, A = V_r^T of W = U S V^T,    R = (I + Q) (I - Q)^-1,  Q skew

    when        the update is to keep the angles among the weight's main directions, at r^2 / 2 numbers a layer
    shapes      A [r, in], B [out, r] of W; Q [r (r - 1) / 2], the entries above the diagonal, row by row; a, b [r] with `stretch`
    init        Q = 0, a = b = 1: starts as the base; A and B are made from the base again when loading
    parameters  r (r - 1) / 2 per layer, and 2 r with `stretch`: 35,840 for LLaMA-2-7B, q and v, r = 32
    merge       exact; export: peft-lora, exact
    source      Wu et al. 2025, arXiv:2505.11235
    """

    r: int = option(32, at_least=2, help="singular directions that turn")
    stretch: bool = option(True, help="train a and b, which let lengths change a little")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")

    def factorises(self) -> bool:
        return True

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and self.r > min(host.fan_in, host.fan_out):
            reason = f"r = {self.r} is above its rank, {min(host.fan_in, host.fan_out)}"
        return reason

    def parameters(self, host: Host) -> int:
        return (self.r * (self.r - 1) // 2 + 2 * self.r * self.stretch) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PSOFTAdapter:
        return PSOFTAdapter(self, host)


class PSOFTAdapter(LowRank):
    """Q, a and b of one layer."""

    rebuilt = ("A", "B")

    def __init__(self, method: PSOFT, host: Host):
        super().__init__(host, dropout=method.dropout)
        self.r = r = method.r
        W = host.weight()
        U, S, Vh = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        self.register_buffer("A", Vh[..., :r, :].contiguous())
        self.register_buffer("B", U[..., :r] * S[..., None, :r])
        self.Q = nn.Parameter(torch.zeros(*host.lead, r * (r - 1) // 2))
        self.a = nn.Parameter(torch.ones(*host.lead, r)) if method.stretch else None
        self.b = nn.Parameter(torch.ones(*host.lead, r)) if method.stretch else None

    def factors(self) -> tuple[Tensor, Tensor]:
        R = cayley(skew(self.Q, self.r))
        if self.a is not None and self.b is not None:
            R = self.b[..., None].to(R.dtype) * R * self.a[..., None, :].to(R.dtype)
        turned = R - torch.eye(self.r, dtype=R.dtype, device=R.device)
        return turned @ self.get_buffer("A").to(R.dtype), self.get_buffer("B").to(R.dtype)
