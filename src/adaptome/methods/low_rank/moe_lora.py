"""MoE-LoRA: several low-rank experts on each layer, chosen token by token."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host, autocasting
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import kaiming


@register(
    "moe-lora", subcategory="low-rank, mixture of experts", merge="none", export="none",
    inference_overhead="extra modules", per_sample_routing=True, hosts=("linear",),
    source="Sun et al. 2025, arXiv:2502.15828",
)  # fmt: skip
class MoELoRA(Method):
    r"""MoE-LoRA: several low-rank experts on each layer, chosen token by token.

        y = W x + (alpha / r) sum_e g_e(x) B_e A_e x,    g = softmax of the `top_k` largest of G x, 0 for the others

    when        data of different kinds in one adapter that need not merge
    shapes      W [out, in] frozen, quantised or not; A [E, r, in], B [E, out, r], G [E, in]; g [E] a token
    init        A Kaiming-uniform(a = sqrt 5), B = 0: starts as the base; G ~ N(0, 0.02^2)
    parameters  E r (in + out) + E in per layer: 17,825,792 for LLaMA-2-7B, q and v, E = 4, r = 8
    forward     all experts at once: two products of rank E r, the gates acting on the E r numbers between them
    balance     loss + balance * E sum_e f_e p_e of every layer, averaged over layers: f_e the share of tokens whose choices include e,
                divided by top_k, p_e the mean of softmax(G x)_e; 1 when even. Of the last forward in training
    riemann     the gradients of each expert become (B^T B + delta)^-1 dA and dB (A A^T + delta)^-1, which makes plain gradient steps
                independent of how the product is split between A and B
    rescale     a gate weighs an expert's output and once more its gradient, so that a step moves the product by g^2 of the full one: with
                'inverse' every token's part of dA and dB is divided by its g (the paper's solution), with 'sqrt' by sqrt(g) (what it
                trains with). Outputs and the gradients of x and of the gates stay what they are
    merge       none: the update depends on the token
    source      Sun et al. 2025, arXiv:2502.15828, section 3 (preconditioning, rescaling by the gates);
                balance as Fedus et al. 2021, arXiv:2101.03961, equations 4-6
    """

    r: int = option(8, at_least=1, help="rank of each expert")
    experts: int = option(4, at_least=1, help="E")
    top_k: int = option(2, at_least=1, help="experts a token is given to; E mixes all")
    alpha: float = option(16.0, help="the update is scaled by alpha / r")
    dropout: float = option(0.0, at_least=0, below=1, help="on the experts' input")
    balance: float = option(0.01, at_least=0, help="weight of the load balance in the loss")
    riemann: bool = option(False, help="precondition the gradients of A and B")
    rescale: Literal["none", "sqrt", "inverse"] = option(
        "none", help="free the gradients of A and B of the gates"
    )
    delta: float = option(1e-6, above=0, help="added to the diagonal of the preconditioners")

    def validate(self) -> None:
        if self.top_k > self.experts:
            raise MethodError(f"moe-lora: top_k = {self.top_k} is above experts = {self.experts}.")

    def parameters(self, host: Host) -> int:
        return self.experts * (self.r * (host.fan_in + host.fan_out) + host.fan_in)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> MoELoRAAdapter:
        return MoELoRAAdapter(self, host)

    def penalty(self, adapters: Mapping[str, Any], shared: nn.Module | None) -> Tensor | None:
        """`balance` times the mean of the layers' load balances, of those that ran in training since it was last asked for."""
        terms = [t for adapter in adapters.values() if (t := adapter.take_balance()) is not None]
        if not terms or not self.balance:
            return None
        return self.balance * torch.stack([t.to(terms[0].device) for t in terms]).mean()


class MoELoRAAdapter(Adapter):
    """The experts and the router of one layer."""

    own_strength = True

    def __init__(self, method: MoELoRA, host: Host):
        super().__init__(host)
        E, r = method.experts, method.r
        self.scale, self.dropout, self.top_k = method.alpha / r, method.dropout, method.top_k
        self.balanced = method.balance > 0
        self.riemann, self.damping, self.rescale = method.riemann, method.delta, method.rescale
        self.A = nn.Parameter(kaiming(torch.empty(E, r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(E, host.fan_out, r))
        self.G = nn.Parameter(torch.randn(E, host.fan_in) * 0.02)
        self._balance: Tensor | None = None

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g and softmax(G x), `[..., E]`, in at least float32: a choice should not hang on rounding."""
        exact = torch.promote_types(torch.promote_types(x.dtype, self.G.dtype), torch.float32)
        with torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext():
            logits = F.linear(x.to(exact), self.G.to(exact))
        best = logits.topk(self.top_k, dim=-1)
        g = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
        return g, logits.softmax(-1)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(x, *args, **kwargs)
        g, p = self.gates(x)
        x = F.dropout(x.to(y.dtype), self.dropout, self.training)
        if self.training and self.balanced and torch.is_grad_enabled():
            self._balance = _balance(g, p, self.top_k)
        A, B = _Riemann.apply(self.A, self.B, self.damping) if self.riemann else (self.A, self.B)
        A, B, g = A.flatten(0, 1).to(x.dtype), B.transpose(0, 1).flatten(1), g.to(x.dtype)
        if self.rescale != "none" and torch.is_grad_enabled():
            h = (g > 0).to(g.dtype) if self.rescale == "inverse" else g.detach().sqrt()
            return self.host.add(y, _Rescaled.apply(x, A, B.to(x.dtype), g, h), self.scale * self.strength)
        z = F.linear(x, A).unflatten(-1, (g.shape[-1], -1)) * g[..., None]
        return self.host.add_expanded(y, z.flatten(-2), B, self.scale * self.strength)

    def take_balance(self) -> Tensor | None:
        """The load balance of the last forward in training, once."""
        taken, self._balance = self._balance, None
        return taken

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what belongs to a running graph."""
        return {**self.__dict__, "_balance": None}


def _balance(g: Tensor, p: Tensor, top_k: int) -> Tensor:
    """E sum_e f_e p_e over all tokens."""
    f = (g.detach() > 0).to(p.dtype).flatten(0, -2).mean(0) / top_k
    return p.shape[-1] * (f * p.flatten(0, -2).mean(0)).sum()


class _Riemann(torch.autograd.Function):
    """A and B as they are; their gradients are preconditioned."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(A, B)
        ctx.damping = damping
        return A.view_as(A), B.view_as(B)

    @staticmethod
    def backward(ctx: Any, dA: Tensor, dB: Tensor) -> Any:
        A, B = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in ctx.saved_tensors)
        damp = ctx.damping * torch.eye(A.shape[-2], dtype=A.dtype, device=A.device)
        # unchecked: no wait for the device, and a run that diverges ends in NaN, which its loss tells, as without preconditioning
        pA, _ = torch.linalg.solve_ex(B.mT @ B + damp, dA.to(A.dtype))
        pB, _ = torch.linalg.solve_ex(A @ A.mT + damp, dB.to(A.dtype).mT)
        return pA.to(dA.dtype), pB.mT.to(dB.dtype), None


class _Rescaled(torch.autograd.Function):
    """`sum_e g_e B_e A_e x`; in the gradients of A and B alone, h stands for g.

    x `[..., in]`, A `[E r, in]`, B `[out, E r]`, g and h `[..., E]`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, g: Tensor, h: Tensor) -> Tensor:
        z = F.linear(x, A).unflatten(-1, (g.shape[-1], -1))
        ctx.save_for_backward(x, A, B, g, h, z)
        return F.linear((z * g[..., None]).flatten(-2), B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, A, B, g, h, z = ctx.saved_tensors
        du = (dy @ B).unflatten(-1, z.shape[-2:])
        dA = _weighted(du, h).t() @ x.flatten(0, -2)
        dB = dy.flatten(0, -2).t() @ _weighted(z, h)
        dx = (_weighted(du, g) @ A).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, dA, dB, (du * z).sum(-1), None


def _weighted(z: Tensor, gates: Tensor) -> Tensor:
    """`gates * z`, a row a token."""
    return (z * gates[..., None]).flatten(-2).flatten(0, -2)
