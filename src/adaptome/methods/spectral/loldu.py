"""LoLDU: the leading pivots of each weight's LDU factorisation are trained, the triangles stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.rescaled import Rescaled

Init = Literal["lu", "uniform", "constant", "normal", "s_uniform", "s_normal", "ones", "zeros"]


@register(
    "loldu",
    subcategory="spectral, LDU",
    export="low-rank",
    source="Shi et al. 2024, arXiv:2410.13618, section 3",
)
class LoLDU(Method):
    r"""LoLDU: the leading pivots of each weight's LDU factorisation are trained, the triangles stay.

        W' = W + P L_r diag(sigma z - sigma0 z0) U_r,    W = P L diag(D) U,  z0 = D_r,  sigma0 = alpha / r

    when        at most some hundred numbers a layer
    shapes      P permutation (partial pivoting, kept as the order of L's rows); L_r [out, r], U_r [r, in] unit trapezoids; z [r]
    init        'lu': z = z0, starts as the base. The others do not: 'uniform' in +-|mean(z0)| / 2 (the paper's best rows), 'constant'
                mean(z0), 'normal' with the mean and deviation of z0, 's_uniform' U(-1, 1), 's_normal' N(0, 1), 'ones', 'zeros'
    parameters  r + 1 per layer (r without `train_scale`): 18,456 for RoBERTa-base, q and v, r = 768; r at most min(in, out)
    forward     W x + P L_r (d * (U_r x)), r (in + out) products a token; with r = min(in, out) the factors replace W x
    guard       a pivot below 1e-12 of the largest leaves U's row as it is, and 1 in D
    merge       exact; export: peft-lora of rank r, exact, or less by SVD
    source      Shi et al. 2024, arXiv:2410.13618, section 3

    The paper's residual is W - sigma0 P L_r diag(z0) U_r, which is the same update. The file holds z and sigma; loading factorises the
    base again, in float64, and needs it in the precision that it was trained in: rounding it would change the order of the pivots.
    """

    r: int = option(64, at_least=1, help="trained pivots")
    alpha: float | None = option(None, help="sigma starts at alpha / r; r when not given")
    train_scale: bool = option(True, help="train sigma too")
    init: Init = option("lu", help="how z starts")

    def fitting(self, host: Host) -> dict[str, Any]:
        return {"r": min(self.r, host.fan_in, host.fan_out)}

    def admits(self, host: Host) -> str | None:
        k = min(host.fan_in, host.fan_out)
        return super().admits(host) or (f"r = {self.r} is above its rank, {k}" if self.r > k else None)

    def factorises(self) -> bool:
        return True

    def parameters(self, host: Host) -> int:
        return (self.r + self.train_scale) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Rescaled:
        return LoLDUAdapter(self, host)


class LoLDUAdapter(Rescaled):
    """z and sigma of one layer."""

    def __init__(self, method: LoLDU, host: Host):
        W, r = host.weight(), method.r
        exact = torch.promote_types(W.dtype, torch.float32)
        L, D, U = (part.to(exact) for part in ldu(W))
        scale = 1.0 if method.alpha is None else method.alpha / r
        super().__init__(host, L[..., :r], D[..., :r], U[..., :r, :], complete=r == D.shape[-1])
        self.z = nn.Parameter(started(D[..., :r], method.init))
        sigma = torch.full((*host.lead, 1), scale, dtype=torch.float64)
        self.sigma0 = scale
        self.sigma = nn.Parameter(sigma) if method.train_scale else None

    def change(self) -> Tensor:
        z0 = self.get_buffer("d0").to(self.z.dtype)
        return self.z * (self.sigma0 if self.sigma is None else self.sigma) - z0 * self.sigma0


def ldu(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`P L [*, m, k]`, `D [*, k]` and unit upper `U [*, k, n]` with `W = P L diag(D) U`; tiny pivots are left inside U, with D = 1."""
    # in float64: in float32 the order of a large weight's pivots hangs on how a machine rounds, and a file holds z in that order
    exact = (W.cpu() if W.is_mps else W).double()
    LU, pivots, _ = torch.linalg.lu_factor_ex(exact)  # which takes singular matrices
    k = min(W.shape[-2:])
    D = LU.diagonal(dim1=-2, dim2=-1)
    tiny = D.abs() <= 1e-12 * D.abs().amax(-1, keepdim=True)
    D = torch.where(tiny, torch.ones_like(D), D)
    L = LU[..., :k].tril(-1)
    L.diagonal(dim1=-2, dim2=-1).fill_(1)
    order = _order(pivots, W.shape[-2])
    PL = L.gather(-2, order[..., None].expand(*order.shape, k))
    U = LU[..., :k, :].triu() / D[..., None]
    return PL.to(W.device), D.to(W.device), U.to(W.device)


def _order(pivots: Tensor, rows: int) -> Tensor:
    """The row of L that each row of P L is, from the exchanges of rows: never a matrix, which for a vocabulary would not fit in memory."""
    if pivots.is_meta:
        return pivots.new_empty(*pivots.shape[:-1], rows, dtype=torch.int64)
    orders = []
    for exchanges in pivots.reshape(-1, pivots.shape[-1]).tolist():
        place = list(range(rows))  # the row of W that stands at each place
        for i, j in enumerate(exchanges):
            place[i], place[j - 1] = place[j - 1], place[i]
        orders.append(torch.tensor(place).argsort())
    return torch.stack(orders).view(*pivots.shape[:-1], rows).to(pivots.device)


def started(z: Tensor, init: Init) -> Tensor:
    """z at its start, from the base's pivots; drawn on the CPU, whose generator is the one that is seeded, wherever z is."""
    mean = z.mean(-1, keepdim=True)

    def drawn(draw: Callable[..., Tensor]) -> Tensor:
        return draw(z.shape, dtype=z.dtype).to(z.device)

    if init == "lu":
        return z.clone()
    if init == "uniform":
        return (drawn(torch.rand) - 0.5) * mean.abs()
    if init == "normal":
        return mean + drawn(torch.randn) * z.std(-1, keepdim=True, correction=0)
    if init == "s_uniform":
        return 2 * drawn(torch.rand) - 1
    if init == "s_normal":
        return drawn(torch.randn)
    return {"constant": mean.expand_as(z).clone(), "ones": torch.ones_like(z)}.get(init, torch.zeros_like(z))
