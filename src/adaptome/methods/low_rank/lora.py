"""LoRA: a low-rank update trained beside each frozen weight."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adaptome.core.errors import HostError, MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank, kaiming

Init = Literal["kaiming", "gaussian", "pissa", "olora", "corda"]


@register(
    "lora", subcategory="low-rank", export="low-rank", source="Hu et al. 2021, arXiv:2106.09685, section 4.1"
)
class LoRA(Method):
    r"""LoRA: a low-rank update trained beside each frozen weight.

        y = W x + s B A x,    s = alpha / r,  or alpha / sqrt(r) with rslora,  times a trained t with train_scale

    when        the first choice: on any layer, merged exactly, known to every server
    shapes      W [out, in] frozen; A [r, in], B [out, r]; x [..., in] -> y [..., out]; fused experts: one pair per expert
    init        'kaiming': A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0 (the authors' code); embeddings: A = 0, B ~ N(0, 1) likewise
                'gaussian': A ~ N(0, 1/r^2), B = 0
                'pissa': B A s = the r leading singular triplets of W (Meng et al. 2024, arXiv:2404.02948)
                'olora': B = Q_r, A = R_r of W = Q R (Bueyuekakyuez 2024, arXiv:2406.01775)
                'corda': as `corda(model, batches, method)` cuts W by the inputs' covariance; by name alone as 'pissa'
                the last three subtract their start from the update, s (B A - B0 A0), so the model starts as the base, its
                weight is never touched and B0, A0 are rebuilt from it when loading ('corda': saved)
                t = 1: with alpha = r as in LAE (Gao et al. 2023, arXiv:2303.10070), where it evens the pace of different methods
    from data   `eva(model, batches, method)`: A from the layers' inputs, B = 0; `loftq(model, full, method)`: B A from what a quantised
                base lacks, `cloq(model, full, batches, method)`: the same, measured by outputs; as `corda`, each is a file beside this one and at the library's top, `ad.eva`
    parameters  r (in + out) per layer, and 1 with train_scale: 33,554,432 for LLaMA-2-7B, q and v, r = 64
    merge       exact; export: peft-lora, exact (rank 2r for 'pissa', 'olora' and 'corda')
    source      Hu et al. 2021, arXiv:2106.09685, section 4.1; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732
    """

    r: int = option(8, at_least=1, help="rank of the update")
    alpha: float = option(16.0, help="the update is scaled by alpha / r")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    rslora: bool = option(False, help="scale by alpha / sqrt(r) instead")
    init: Init = option("kaiming", help="how A and B start")
    train_scale: bool = option(False, help="train a factor of s too, one number a layer")

    def validate(self) -> None:
        if self.train_scale and self.init not in ("kaiming", "gaussian"):
            raise MethodError(
                f"lora: train_scale with init={self.init!r} would scale the start that is subtracted; use 'kaiming' or 'gaussian'."
            )

    def factorises(self) -> bool:
        return self.init in ("pissa", "olora")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)

    def parameters(self, host: Host) -> int:
        return (self.r * (host.fan_in + host.fan_out) + self.train_scale) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        if self.init in ("kaiming", "gaussian"):
            return LoRAAdapter(self, host)
        return FromData(self, host) if self.init == "corda" else FromWeight(self, host)


class LoRAAdapter(LowRank):
    """A and B of one layer."""

    def __init__(self, method: LoRA, host: Host):
        super().__init__(host, method.scale, method.dropout)
        self.A = nn.Parameter(torch.zeros(*host.lead, method.r, host.fan_in))
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))
        with torch.no_grad():
            if host.kind == "embedding":
                self.B.normal_()
            elif method.init == "gaussian":
                self.A.normal_(std=1 / method.r)
            else:
                kaiming(self.A)
        self.t = nn.Parameter(torch.ones(host.lead)) if method.train_scale else None

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B if self.t is None else self.B * self.t[..., None, None]


class FromWeight(LowRank):
    """A and B that start from a factorisation of W; the start is subtracted from the update."""

    rebuilt: ClassVar[tuple[str, ...]] = ("A0", "B0")

    def __init__(self, method: LoRA, host: Host):
        super().__init__(host, method.scale, method.dropout)
        if method.r > min(host.fan_in, host.fan_out):
            raise HostError(
                f"lora with init={method.init!r}: r = {method.r} is above the rank of {host.name}, {min(host.fan_in, host.fan_out)}."
            )
        W = host.weight()
        make = triangular if method.init == "olora" else leading
        A, B = make(W.to(torch.promote_types(W.dtype, torch.float32)), method.r)
        self.A, self.B = nn.Parameter(torch.empty_like(A)), nn.Parameter(torch.empty_like(B))
        self.register_buffer("A0", torch.empty_like(A))
        self.register_buffer("B0", torch.empty_like(B))
        self.begin(A, B)

    @torch.no_grad()
    def begin(self, A: Tensor, B: Tensor) -> None:
        """Start at `s B' A' = B A`."""
        A, B = balanced(A, B, self.scale)
        self.A.copy_(A)
        self.B.copy_(B)
        self.get_buffer("A0").copy_(A)
        self.get_buffer("B0").copy_(B)

    def factors(self) -> tuple[Tensor, Tensor]:
        # rounded as A and B are, so that the start cancels in every precision
        A0, B0 = self.get_buffer("A0").to(self.A.dtype), self.get_buffer("B0").to(self.B.dtype)
        return torch.cat([self.A, A0], -2), torch.cat([self.B, -B0], -1)


class FromData(FromWeight):
    """The same from a part that hangs on data too, so that the start is saved."""

    rebuilt = ()


def balanced(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A' and B' with `scale B' A' = B A`, the scale taken from both alike."""
    root = abs(scale) ** 0.5
    return A / root, B * (root / scale)


def leading(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A `[*, r, in]`, B `[*, out, r]` with B A the r leading singular triplets of W, each with the roots of the singular values."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = S[..., :r].sqrt()
    return (root[..., None] * Vh[..., :r, :]).contiguous(), (U[..., :r] * root[..., None, :]).contiguous()


def triangular(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A = R_r and B = Q_r of W = Q R."""
    Q, R = torch.linalg.qr(W)
    return R[..., :r, :].contiguous(), Q[..., :r].contiguous()
