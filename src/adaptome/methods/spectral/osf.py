"""OSF: the weight's weaker singular directions train, in the complement of its strong ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank


@register(
    "osf",
    subcategory="spectral, singular vectors",
    export="low-rank",
    source="Nayak et al. 2025, arXiv:2504.07097",
)
class OSF(Method):
    r"""OSF: the weight's weaker singular directions train, in the complement of its strong ones.

        W' = W + U diag(s) V - U_0 diag(s_0) V_0,    U = (I - K K^T) U_t,  V = V_t (I - H^T H)

    when        tasks come one after another: what the strong directions hold is not written over
    shapes      K [out, k], H [k, in] the k strong singular vectors of W = K diag(.) H + U_0 diag(s_0) V_0, q = min(in, out) - k the others;
                U_t [out, q], s [q], V_t [q, in] trained
    init        U_t = U_0, s = s_0, V_t = V_0: starts as the base; what belongs to W is made from the base again when loading
    parameters  q (in + out + 1) per layer: as many as full fine-tuning, or more
    projection  it stands in the forward, so that it holds whatever the optimiser does; the paper, and PEFT, project the gradients
    merge       exact; export: peft-lora of rank 2 q, exact
    source      Nayak et al. 2025, arXiv:2504.07097
    """

    rank: int | None = option(None, at_least=1, help="k, the directions kept; half of all when not given")

    def factorises(self) -> bool:
        return True

    def kept(self, host: Host) -> int:
        """k on this layer."""
        return min(host.fan_in, host.fan_out) // 2 if self.rank is None else self.rank

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and self.kept(host) >= min(host.fan_in, host.fan_out):
            reason = f"rank = {self.rank} keeps all of its {min(host.fan_in, host.fan_out)} singular directions; none would train"
        return reason

    def parameters(self, host: Host) -> int:
        q = min(host.fan_in, host.fan_out) - self.kept(host)
        return q * (host.fan_in + host.fan_out + 1) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> OSFAdapter:
        return OSFAdapter(self, host)


class OSFAdapter(LowRank):
    """The trained singular triplets of one layer, and the frozen ones."""

    rebuilt = ("K", "H", "U0", "V0")

    def __init__(self, method: OSF, host: Host):
        super().__init__(host)
        k, W = method.kept(host), host.weight()
        U, s, V = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        for name, value in (
            ("K", U[..., :k]),
            ("H", V[..., :k, :]),
            ("U0", U[..., k:] * s[..., None, k:]),
            ("V0", V[..., k:, :]),
        ):
            self.register_buffer(name, value.contiguous())
        self.U = nn.Parameter(U[..., k:].contiguous())
        self.s = nn.Parameter(s[..., k:].contiguous())
        self.V = nn.Parameter(V[..., k:, :].contiguous())

    def factors(self) -> tuple[Tensor, Tensor]:
        K, H, U0, V0 = (self.get_buffer(name).to(self.U.dtype) for name in ("K", "H", "U0", "V0"))
        U = self.U - K @ (K.mT @ self.U)
        V = self.V - (self.V @ H.mT) @ H
        return torch.cat([V, V0], -2), torch.cat([U * self.s[..., None, :], -U0], -1)
