"""CLIP-SVD: the singular values of each weight are trained, its singular vectors stay."""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.delta import Delta
from adaptome.forms.rescaled import Rescaled


@register(
    "clip-svd",
    subcategory="spectral, singular values",
    export="low-rank",
    source="Koleilat et al. 2025, arXiv:2509.03740",
)
class ClipSVD(Method):
    r"""CLIP-SVD: the singular values of each weight are trained, its singular vectors stay.

        W' = U diag(S + dS) V^T,    W = U diag(S) V^T

    when        few-shot adaptation that is to keep what the base knows beside the task, with very few numbers
    shapes      U [out, r], S, dS [r], V^T [r, in]; k = min(out, in), r = floor(floor(ratio k) / 4) 4, at least 1, as in the authors' code;
                with `energy` the least r whose S_1^2 + ... + S_r^2 is that share of the whole
    rest        the k - r smallest singular values stay as they are ('frozen'), or are left out, as the authors' code does below full
                rank ('dropped': W' = U diag(S + dS) V^T of rank r)
    init        dS = 0: starts as the base ('dropped': as its best approximation of rank r); dS may make a singular value negative. Weight
                decay pulls towards the start
    parameters  r per layer: 92,160 for CLIP ViT-B/16, all 144 linear layers of both encoders
    forward     U ((S + dS) * (V^T x)): r (in + out) products a token in place of in out; with ratio < 1, in half precision, on
                quantised layers and after other adapters W x + U (dS * (V^T x)); keeps r numbers a token
    keeps       the singular subspaces of W
    merge       exact; export: peft-lora of rank r, exact, or less by SVD ('dropped': by SVD)
    source      Koleilat et al. 2025, arXiv:2509.03740

    The SVD is computed once, when the adapter is built; the file holds dS alone, and loading factorises the base again. The sign
    of a pair of singular vectors cancels; equal singular values on both sides of a file need the same LAPACK, and near ones the base in
    the precision that it was trained in.
    """

    ratio: float = option(1.0, above=0, at_most=1, help="the share of the singular values that trains")
    energy: float | None = option(
        None, above=0, at_most=1, help="in place of ratio: the share of the sum of squared singular values"
    )
    rest: Literal["frozen", "dropped"] = option("frozen", help="what becomes of the other singular values")

    def validate(self) -> None:
        if self.energy is not None and self.ratio != 1.0:
            raise MethodError("clip-svd: ratio and energy both choose the rank; give one of them.")

    def rank(self, host: Host) -> int:
        """r."""
        k = min(host.fan_in, host.fan_out)
        if self.energy is None:
            return max(1, int(k * self.ratio) // 4 * 4)
        shares = _shares(host)
        return min(k, 1 + int((shares < self.energy).sum(-1).max()))

    def factorises(self) -> bool:
        return True

    def parameters(self, host: Host) -> int:
        return self.rank(host) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> WeightAdapter:
        return TruncatedAdapter(self, host) if self.rest == "dropped" else ClipSVDAdapter(self, host)


class ClipSVDAdapter(Rescaled):
    """dS of one layer."""

    def __init__(self, method: ClipSVD, host: Host):
        (U, S, Vt), r = factorised(host), method.rank(host)
        super().__init__(host, U[..., :r], S[..., :r], Vt[..., :r, :], complete=r == S.shape[-1])
        self.dS = nn.Parameter(torch.zeros(*host.lead, r))

    def change(self) -> Tensor:
        return self.dS


class TruncatedAdapter(Delta):
    """dS of one layer whose other singular values are left out."""

    rebuilt = ("L", "d0", "R")

    def __init__(self, method: ClipSVD, host: Host):
        super().__init__(host, fast=host.kind == "linear")
        (U, S, Vt), r = factorised(host), method.rank(host)
        for name, value in (("L", U[..., :r]), ("d0", S[..., :r]), ("R", Vt[..., :r, :])):
            self.register_buffer(name, value.contiguous())
        self.dS = nn.Parameter(torch.zeros(*host.lead, r))

    def spectrum(self) -> Tensor:
        """S + dS."""
        return self.get_buffer("d0").to(self.dS.dtype) + self.dS

    def delta(self) -> Tensor:
        S, L, R = self.spectrum(), self.get_buffer("L"), self.get_buffer("R")
        return (L.to(S.dtype) * S[..., None, :]) @ R.to(S.dtype) - self.host.weight().to(S.dtype)

    def product(self, x: Tensor) -> Tensor:
        return self.host.reduce(x, self.delta())

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.strength != 1.0 or not frozen.pristine:
            return super().forward(frozen, x, *args, **kwargs)
        z = self.host.reduce(x, self.get_buffer("R"))
        y, bias = self.host.expand(z * self.spectrum().to(z.dtype), self.get_buffer("L")), frozen.bias()
        return y if bias is None else y + bias.to(y.dtype)


def factorised(host: Host) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of the frozen weight, in at least float32."""
    W = host.weight()
    U, S, Vt = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
    return U, S, Vt


#: a host's shares, for the plan and the adapter both ask
_known: WeakKeyDictionary[Host, Tensor] = WeakKeyDictionary()


def _shares(host: Host) -> Tensor:
    """Of the sum of the squared singular values, what the first r of them make, `[*, k]`.

    Raises:
        MethodError: the base is on the meta device.
    """
    if host not in _known:
        W = host.weight()
        if W.is_meta:
            raise MethodError(
                "clip-svd: energy chooses the rank by the weights, which a model on the meta device has not."
            )
        squares = torch.linalg.svdvals(W.to(torch.promote_types(W.dtype, torch.float32))).square()
        _known[host] = squares.cumsum(-1) / squares.sum(-1, keepdim=True)
    return _known[host]
