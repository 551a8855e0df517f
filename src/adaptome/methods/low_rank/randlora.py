"""RandLoRA: a full-rank update as a sum of low-rank products of frozen random bases, with only diagonal scalings trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.delta import run_changed
from adaptome.forms.low_rank import LowRank


def bases_needed(m: int, r: int, share: float) -> int:
    """n = ceil(share m / r)."""
    return math.ceil(share * m / r)


class Bases(nn.Module):
    """The frozen random A [r, m_max] and B [M_max, n_max, r] of all layers, of unit variance, rebuilt from a seed."""

    rebuilt = ("A", "B")

    def __init__(self, method: RandLoRA, hosts: Sequence[Host]):
        super().__init__()
        widest_in, widest_out = max(h.fan_in for h in hosts), max(h.fan_out for h in hosts)
        m, M = sorted((widest_in, widest_out))
        generator = (
            None
            if torch.get_default_device().type == "meta"
            else torch.Generator().manual_seed(method.projection_seed)
        )
        exact = torch.promote_types(hosts[0].dtype, torch.float32)
        rare = {"dense": 0.0, "sparse": 3.0, "very-sparse": math.sqrt(m)}[method.bases]
        for name, shape in (
            ("A", (method.r, m)),
            ("B", (M, bases_needed(m, method.r, method.share), method.r)),
        ):
            # float32 draws, the same on every base, in its own precision from then on
            drawn = (torch.rand(shape, generator=generator) * 2 - 1).to(exact)
            if rare:
                drawn = (drawn > 1 - 1 / rare).to(exact) - (drawn < 1 / rare - 1).to(exact)
            self.register_buffer(name, drawn / drawn.std())


@register(
    "randlora",
    subcategory="full rank from random bases",
    export="delta",
    hosts=("linear",),
    source="Albert et al. 2025, arXiv:2502.00987, equations 3-4",
)
class RandLoRA(Method):
    r"""RandLoRA: a full-rank update as a sum of low-rank products of frozen random bases, with only diagonal scalings trained.

        dW = s sum_j B_j diag(l_j) A diag(g_j),    j = 1..n,  n = ceil(share m / r),  m = min(in, out), M = max(in, out)

    when        LoRA's low rank is the limit: updates of full rank at its size
    shapes      A [r, m], B_j [M, r] frozen, the corners of one pair for all layers; lambda [n, r], gamma [n, m];
                dW is [M, m] as it stands where in = m, else transposed
    init        lambda = 0, gamma = 1 / max(n, m): starts as the base; A, B uniform of unit variance from `projection_seed`
                (not stored), or ternary: 'sparse' has 2/3 zeros, 'very-sparse' 1 - 1/sqrt(m) zeros
    scale       s = alpha / r; alpha = 20 r unless given, as in PEFT (the authors advise 2 r to 20 r; alpha / (r sqrt n) is abandoned)
    parameters  n (r + m) per layer (a smaller r has more): 56,626,112 for LLaMA-3-8B, q, k, v, up and down, r = 30
    forward     'factors' multiplies by the n r columns in turn, 'dense' forms W + dW, and again in the backward; 'auto' forms it when the
                call has more than m tokens and the weight is not packed, which is then the cheaper
    pairs       'peft': PEFT lays B's columns out by basis and A's rows by rank, and multiplies them as they lie: the row of A of rank k
                and basis j meets B's column number k n + j. As random as the equation, and another function
    merge       exact
    source      Albert et al. 2025, arXiv:2502.00987, equations 3-4
    """

    r: int = option(32, at_least=1, help="rank of each basis")
    share: float = option(
        1.0, above=0, at_most=1, help="of the bases that full rank needs; 0.5 is the paper's RandLoRA-b"
    )
    alpha: float | None = option(None, help="the update is scaled by alpha / r; 20 r when not given")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input; keeps the 'factors' form")
    bases: Literal["dense", "sparse", "very-sparse"] = option("dense", help="how the random bases are drawn")
    pairs: Literal["bases", "peft"] = option(
        "bases", help="which column of B meets which row of A; 'peft' as PEFT's code pairs them"
    )
    form: Literal["auto", "factors", "dense"] = option("auto", help="how the forward computes")
    projection_seed: int = option(0, help="draws the bases")

    def parameters(self, host: Host) -> int:
        m = min(host.fan_in, host.fan_out)
        return bases_needed(m, self.r, self.share) * (self.r + m)

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Bases(self, hosts)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return RandLoRAAdapter(self, host, shared)


class RandLoRAAdapter(LowRank):
    """lambda and gamma of one layer."""

    def __init__(self, method: RandLoRA, host: Host, shared: nn.Module | None):
        alpha = 20.0 * method.r if method.alpha is None else method.alpha
        super().__init__(host, alpha / method.r, method.dropout, shared)
        self.form, self.pairs = method.form, method.pairs
        self.m, self.M = sorted((host.fan_in, host.fan_out))
        self.n = bases_needed(self.m, method.r, method.share)
        self.lambda_ = nn.Parameter(torch.zeros(self.n, method.r))
        self.gamma = nn.Parameter(torch.full((self.n, self.m), 1 / max(self.n, self.m), dtype=torch.float64))

    def factors(self) -> tuple[Tensor, Tensor]:
        P = _Scaled.apply(self.shared.A[:, : self.m].to(self.gamma.dtype), self.lambda_, self.gamma)
        Q = self.shared.B[: self.M, : self.n].flatten(1).to(self.gamma.dtype)
        if self.pairs == "peft":  # P's rows by basis, as the equation has them
            Q = Q.view(self.M, -1, self.n).mT.flatten(1)
        return (P, Q) if self.host.fan_in == self.m else (Q.t(), P.t())

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        many = x.numel() // x.shape[-1] > self.m and not self.host.packed
        if self.form == "factors" or (self.dropout and self.training) or (self.form == "auto" and not many):
            return super().forward(frozen, x, *args, **kwargs)
        return run_changed(self, frozen, x)

    def as_lora(self) -> Any:
        """None: its rank is min(in, out); exported by SVD."""
        return None


class _Scaled(torch.autograd.Function):
    """`P[(j, k), i] = lambda[j, k] A[k, i] gamma[j, i]`, saving its three small arguments and not the product."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, l: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(A, l, g)
        return (l[:, :, None] * A * g[:, None, :]).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        A, l, g = ctx.saved_tensors
        G = grad.view(*l.shape, -1) * A
        return None, torch.einsum("jki,ji->jk", G, g), torch.einsum("jki,jk->ji", G, l)
