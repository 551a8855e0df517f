"""Soft mixture of adapters: many bottlenecks, each working on a few weighted means of the tokens."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.forms.bottleneck import ACTIVATIONS, Activation, affine
from adaptome.forms.insertion import BesideMethod, Inserted
from adaptome.forms.tokens import as_batch


@register(
    "soft-moa", category="additive", subcategory="mixture of bottleneck adapters", merge="none", export="none",
    inference_overhead="extra modules", hosts=("module",), default_targets=("q", "o"), source="Cappellazzo et al. 2024, arXiv:2402.00828",
)  # fmt: skip
class SoftMoA(BesideMethod):
    r"""Soft mixture of adapters: many bottlenecks, each working on a few weighted means of the tokens.

        soft    y = f(X) + s C [A_e(slot)],  slots = softmax_tokens(X P)^T X,  C = softmax_slots(X P)
        dense   y = f(x) + s sum_e softmax(R x + r)_e A_e(x)

    when        audio and vision transformers, with more capacity at little computation
    shapes      A_e(x) = U_e g(D_e x + d_e) + u_e, D_e [b, d], U_e [d, b], e = 1..n; X [tokens, d]; P [d, n p]; R [n, d]
    init        D_e Kaiming-uniform(a = sqrt 5), U_e = 0: starts as the base; P, R Xavier-normal
    placement   as in `adaptformer`, here beside the attention
    tokens      'soft' mixes all tokens of a sample, so it is for encoders; padding is mixed in too. With n = p = 1 it gives all tokens the same
    parameters  n (2 d b + b + d) + d n p per sub-layer ('dense': + n (d + 1)): 910,728 for AST, n = 7, p = 1, reduction = 128
    merge       none: it is not linear
    source      Cappellazzo et al. 2024, arXiv:2402.00828
    """

    size: int = option(6, at_least=1, help="the bottleneck b of each adapter")
    adapters: int = option(7, at_least=1, help="n, how many")
    slots: int = option(1, at_least=1, help="p, means of the tokens for each adapter ('soft')")
    routing: Literal["soft", "dense"] = option("soft", help="means of tokens, or a weight for every token")
    activation: Activation = option("gelu", help="g")

    def numbers(self, host: Host, fan_in: int, fan_out: int) -> int:
        b, n = self.bottleneck(fan_in), self.adapters
        router = fan_in * n * self.slots if self.routing == "soft" else n * (fan_in + 1)
        return n * (b * (fan_in + fan_out) + b + fan_out) + router

    def network(self, host: Host, shared: nn.Module | None) -> Inserted:
        return (SoftMixture if self.routing == "soft" else DenseMixture)(self, host, shared)


class Mixture(Inserted):
    """The adapters of one sub-layer: D `[n, b, d]`, d `[n, b]`, U `[n, d, b]`, u `[n, d]`."""

    def __init__(self, method: SoftMoA, host: Host, shared: nn.Module | None):
        super().__init__(host, method.how(), method.scale, method.drop, shared)
        fan_in, fan_out = method.widths(host)
        n, b = method.adapters, method.bottleneck(fan_in)
        self.n, self.activation = n, ACTIVATIONS[method.activation]
        self.D, self.d = nn.Parameter(torch.empty(n, b, fan_in)), nn.Parameter(torch.zeros(n, b))
        self.U, self.u = nn.Parameter(torch.zeros(n, fan_out, b)), nn.Parameter(torch.zeros(n, fan_out))
        for D in self.D:
            nn.init.kaiming_uniform_(D, a=math.sqrt(5))


class SoftMixture(Mixture):
    """With P `[d, n p]`."""

    def __init__(self, method: SoftMoA, host: Host, shared: nn.Module | None):
        super().__init__(method, host, shared)
        self.P = nn.Parameter(torch.empty(self.D.shape[2], self.n * method.slots))
        nn.init.xavier_normal_(self.P)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dispatch, a softmax over tokens, and combine, one over slots; both `[batch, tokens, n p]`."""
        logits = x @ self.P.to(x.dtype)
        return logits.softmax(1), logits.softmax(2)

    def network(self, h: Tensor) -> Tensor:
        x = as_batch(h, "soft-moa")
        dispatch, combine = self.weights(x)
        slots = (dispatch.mT @ x).unflatten(1, (self.n, -1)).transpose(0, 1)  # [n, batch, p, d]
        D, d, U, u = (t.to(x.dtype) for t in (self.D, self.d, self.U, self.u))
        z = self.activation(torch.baddbmm(d[:, None], slots.flatten(1, 2), D.mT))
        made = torch.baddbmm(u[:, None], z, U.mT).view(*slots.shape[:-1], -1)
        return (combine @ made.transpose(0, 1).flatten(1, 2)).view(*h.shape[:-1], -1)


class DenseMixture(Mixture):
    """With R `[n, d]` and its bias."""

    def __init__(self, method: SoftMoA, host: Host, shared: nn.Module | None):
        super().__init__(method, host, shared)
        self.R, self.r = nn.Parameter(torch.empty(self.n, self.D.shape[2])), nn.Parameter(torch.zeros(self.n))
        nn.init.xavier_normal_(self.R)

    def network(self, h: Tensor) -> Tensor:
        gate = affine(h, self.R, self.r).softmax(-1)
        z = self.activation(affine(h, self.D.flatten(0, 1), self.d.flatten()))
        z = (z.unflatten(-1, (self.n, -1)) * gate[..., None]).flatten(-2)
        # all adapters in one product: their U side by side
        return affine(z, self.U.transpose(0, 1).flatten(1), None) + gate @ self.u.to(h.dtype)
