"""CLIP-SVD: the singular values of each weight are trained, its singular vectors stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
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
    shapes      U [out, r], S, dS [r], V^T [r, in]; k = min(out, in), r = floor(floor(ratio k) / 4) 4, between 1 and k, and k at ratio 1
    init        dS = 0: starts as the base; dS may make a singular value negative. Weight decay pulls towards the base
    parameters  r per layer: 92,160 for CLIP ViT-B/16, all 144 linear layers of both encoders
    forward     U ((S + dS) * (V^T x)): r (in + out) products a token in place of in out; with ratio < 1, in half precision, on
                quantised layers and after other adapters W x + U (dS * (V^T x)); keeps r numbers a token
    keeps       the singular subspaces of W
    merge       exact; export: peft-lora of rank r, exact, or less by SVD
    source      Koleilat et al. 2025, arXiv:2509.03740

    The SVD is computed once, when the adapter is built; the file holds dS alone, and loading factorises the base again. The sign
    of a pair of singular vectors cancels; equal singular values on both sides of a file need the same LAPACK, and near ones the base in
    the precision that it was trained in.
    """

    ratio: float = option(1.0, above=0, at_most=1, help="the share of the singular values that trains")

    def rank(self, host: Host) -> int:
        """r."""
        k = min(host.fan_in, host.fan_out)
        return k if self.ratio == 1 else min(k, max(1, int(k * self.ratio) // 4 * 4))

    def factorises(self) -> bool:
        return True

    def parameters(self, host: Host) -> int:
        return self.rank(host) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Rescaled:
        return ClipSVDAdapter(self, host)


class ClipSVDAdapter(Rescaled):
    """dS of one layer."""

    def __init__(self, method: ClipSVD, host: Host):
        W, r = host.weight(), method.rank(host)
        U, S, Vt = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        super().__init__(host, U[..., :r], S[..., :r], Vt[..., :r, :], complete=r == S.shape[-1])
        self.dS = nn.Parameter(torch.zeros(*host.lead, r))

    def change(self) -> Tensor:
        return self.dS
