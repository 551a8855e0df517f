"""TLoRA: a tensor-ring transform of the frozen weight plus a compact residual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register

#: the authors' factorisations
SHAPES = {320: (4, 8, 10), 640: (8, 8, 10), 768: (8, 8, 12), 1280: (8, 10, 16), 2048: (8, 16, 16)}


def factorise(width: int) -> tuple[int, int, int]:
    """The width as three factors: the authors' where they give them, else those nearest to each other, ascending."""
    if width in SHAPES:
        return SHAPES[width]
    triples = [
        (a, b, width // a // b)
        for a in range(1, math.isqrt(width) + 1)
        if width % a == 0
        for b in range(a, math.isqrt(width // a) + 1)
        if (width // a) % b == 0
    ]
    return min(triples, key=sum)


@register(
    "tlora",
    subcategory="tensor ring transform and residual",
    hosts=("linear",),
    default_targets="attention",
    source="Tao et al. 2025, arXiv:2501.08727, section 3",
)
class TLoRA(Method):
    r"""TLoRA: a tensor-ring transform of the frozen weight plus a compact residual.

        y = (W T + s D) x + b,    T[i, j] = tr(A1[i1, j1] A2[i2, j2] A3[i3, j3]),  in = I1 I2 I3, out = O1 O2 O3
        residual 'ring'   D[i, j] = tr(B1[i1] B2[i2] B3[i3] C1[j1] C2[j2] C3[j3])
        residual 'lora'   D = B A

    shapes      Ad [Id, Id, R, R]; Bd [Od, q, q], Cd [Id, q, q]; or A [q, in], B [out, q]; indices are row-major (the first slowest)
    init        Ad = identity / R on every ring index, so T = 1 exactly; B1 = 0 (or B = 0), so D = 0: starts as the base;
                Cd ~ N(0, 1 / Id), Bd ~ N(0, Od / q^4) for d > 1, A Kaiming-normal(a = sqrt 5), as the authors' code
    scale       s = alpha / sqrt(q), or alpha / q without `rslora`
    parameters  R^2 sum Id^2 + q^2 (sum Id + sum Od), or + q (in + out): 941,440 on the SD 1.5 UNet's attention, R = 2, lora, q = 4
    forward     T x by one contraction a factor, D x by contracting the ring: neither T nor D is built
    stored      Ad less its identity, so that weight decay pulls towards the base
    merge       exact; unmerging uses the kept weight (T may become singular)
    note        T-LoRA (arXiv:2507.05964) and LyCORIS' tlora are other methods
    source      Tao et al. 2025, arXiv:2501.08727, section 3; `identity_penalty` is the paper's R_I, its better regulariser
    """

    R: int = option(1, at_least=0, help="ring rank of the transform; 0 leaves it out")
    q: int = option(4, at_least=0, help="rank of the residual; 0 leaves it out")
    residual: Literal["lora", "ring"] = option("lora", help="form of the residual")
    alpha: float = option(1.0, help="of the residual's scale")
    rslora: bool = option(True, help="s = alpha / sqrt(q) instead of alpha / q")
    identity_penalty: float = option(
        0.0, at_least=0, help="weight of R_I = sum |Ad - identity / R|_F in the loss"
    )

    def validate(self) -> None:
        if self.R + self.q == 0:
            raise MethodError("tlora: R and q are both 0; a transform or a residual is needed.")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.q) if self.rslora else self.q) if self.q else 0.0

    def parameters(self, host: Host) -> int:
        I, O = factorise(host.fan_in), factorise(host.fan_out)
        residual = (
            self.q * (host.fan_in + host.fan_out) if self.residual == "lora" else self.q**2 * sum(I + O)
        )
        return self.R**2 * sum(i * i for i in I) + residual

    def adapter(self, host: Host, shared: nn.Module | None = None) -> TLoRAAdapter:
        return TLoRAAdapter(self, host)

    def penalty(self, adapters: Mapping[str, Any], shared: nn.Module | None) -> Tensor | None:
        """`identity_penalty` times R_I, or None."""
        moved = [core for adapter in adapters.values() for core in adapter.transform]
        if not moved or not self.identity_penalty:
            return None
        return self.identity_penalty * torch.stack([c.square().sum((0, 1)).sqrt().sum() for c in moved]).sum()


class TLoRAAdapter(WeightAdapter):
    """The cores of one layer."""

    fast = True

    def __init__(self, method: TLoRA, host: Host):
        super().__init__(host)
        self.R, self.q, self.scale, self.ring = method.R, method.q, method.scale, method.residual == "ring"
        self.I, self.O = factorise(host.fan_in), factorise(host.fan_out)
        R, q = self.R, self.q
        self.transform = nn.ParameterList([torch.zeros(i, i, R, R) for i in self.I] if R else [])
        self.B, self.C = nn.ParameterList(), nn.ParameterList()
        if q and self.ring:
            self.B.extend(
                [torch.randn(o, q, q) * (math.sqrt(o) / q**2 if d else 0.0) for d, o in enumerate(self.O)]
            )
            self.C.extend([torch.randn(i, q, q) / math.sqrt(i) for i in self.I])
        elif q:
            self.C.append(nn.init.kaiming_normal_(torch.empty(q, host.fan_in), a=5**0.5))
            self.B.append(torch.zeros(host.fan_out, q))

    def cores(self) -> list[Tensor]:
        """Ad: what is trained, and the identity on every ring index."""
        return [
            moved + (torch.eye(len(moved), dtype=moved.dtype, device=moved.device) / self.R)[:, :, None, None]
            for moved in self.transform
        ]

    def transformed(self, x: Tensor) -> Tensor:
        """`T x` for x [..., in], one factor at a time."""
        if not self.R:
            return x
        h = x.reshape(-1, *self.I)
        a, b, c = (core.to(x.dtype) for core in self.cores())
        if self.R == 1:
            h = torch.einsum("il,nlyz->niyz", a[..., 0, 0], h)
            h = torch.einsum("jm,nimz->nijz", b[..., 0, 0], h)
            return torch.einsum("kp,nijp->nijk", c[..., 0, 0], h).reshape(x.shape)
        h = torch.einsum("ilrs,nlmp->nimprs", a, h)
        h = torch.einsum("jmst,nimprs->nijprt", b, h)
        return torch.einsum("kptr,nijprt->nijk", c, h).reshape(x.shape)

    def residual(self, x: Tensor) -> Tensor | None:
        """`D x` for x [..., in]; None without a residual."""
        if not self.q:
            return None
        if not self.ring:
            return nn.functional.linear(nn.functional.linear(x, self.C[0].to(x.dtype)), self.B[0].to(x.dtype))
        c1, c2, c3 = (core.to(x.dtype) for core in self.C)
        b1, b2, b3 = (core.to(x.dtype) for core in self.B)
        h = torch.einsum("ktu,nijk->nijtu", c3, x.reshape(-1, *self.I))
        h = torch.einsum("jst,nijtu->nisu", c2, h)
        h = torch.einsum("irs,nisu->nru", c1, h)  # the ring, still open: [tokens, q, q]
        head = torch.einsum("xab,ybc->xyac", b1, b2)
        out = torch.einsum("xyac,zcr,nra->nxyz", head, b3, h)
        return out.reshape(*x.shape[:-1], -1)

    def forward(self, frozen: Frozen, x: Tensor) -> Tensor:
        y = frozen(
            self.transformed(x) if self.strength == 1.0 else torch.lerp(x, self.transformed(x), self.strength)
        )
        added = self.residual(x.to(y.dtype))
        return y if added is None else torch.add(y, added, alpha=self.scale * self.strength)

    def changed(self, name: str, value: Tensor) -> Tensor:
        # the rows of W T are T^T applied to W's rows; D is what it makes of the unit vectors
        eye = torch.eye(self.host.fan_in, dtype=value.dtype, device=value.device)
        value = value @ self.transformed(eye).t()
        added = self.residual(eye)
        return value if added is None else value + self.scale * added.t()
