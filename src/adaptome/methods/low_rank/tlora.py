"""TLoRA: a tensor-ring transform of the frozen weight plus a compact residual."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register

#: the authors' factorisations
SHAPES = {320: (4, 8, 10), 640: (8, 8, 10), 768: (8, 8, 12), 1280: (8, 10, 16), 2048: (8, 16, 16)}


def factorise(width: int, by_hand: Sequence[tuple[int, ...]] = ()) -> tuple[int, int, int]:
    """The width as three factors: those by hand, or the authors' where they give them, else those nearest to each other, ascending."""
    for a, b, c in (*by_hand, *SHAPES.values()):
        if a * b * c == width:
            return a, b, c
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
        residual 'ttm'    D[i, j] = tr(B1[i1, j1] B2[i2, j2] B3[i3, j3])

    when        the target is near a transform of the base, with fewer numbers than LoRA's
    shapes      Ad [Id, Id, R, R]; ring: Bd [Od, q, q], Cd [Id, q, q]; lora: A [q, in], B [out, q]; ttm: Bd [Od, Id, q, q]; indices
                are row-major (the first slowest). `factors` sets the three of a width; else the authors', or the nearest to each other
    init        Ad = identity / R on every ring index, so T = 1 exactly; B1 = 0 (or B = 0), so D = 0: starts as the base;
                Cd ~ N(0, 1 / Id), Bd ~ N(0, Od / q^4) for d > 1, A Kaiming-normal(a = sqrt 5), as the authors' code; ttm: Bd ~ N(0, 1 / (q Id))
    scale       s = alpha / sqrt(q), or alpha / q without `rslora`
    parameters  R^2 sum Id^2 + q^2 (sum Id + sum Od), or + q (in + out), or + q^2 sum Od Id: 941,440 on the SD 1.5 UNet's attention, R = 2, lora, q = 4
    forward     T x by one contraction a factor (with R = 1 the last two in one), D x by contracting the ring: neither T nor D is built
    stored      Ad less its identity, so that weight decay pulls towards the base
    merge       exact; unmerging uses the kept weight (T may become singular)
    note        T-LoRA (arXiv:2507.05964) and LyCORIS' tlora are other methods
    source      Tao et al. 2025, arXiv:2501.08727, section 3; `identity_penalty` is the paper's R_I, its better regulariser,
                `orthogonal_penalty` its R_O
    """

    R: int = option(1, at_least=0, help="ring rank of the transform; 0 leaves it out")
    q: int = option(4, at_least=0, help="rank of the residual; 0 leaves it out")
    residual: Literal["lora", "ring", "ttm"] = option("lora", help="form of the residual")
    alpha: float = option(1.0, help="of the residual's scale")
    rslora: bool = option(True, help="s = alpha / sqrt(q) instead of alpha / q")
    identity_penalty: float = option(
        0.0, at_least=0, help="weight of R_I = sum |Ad - identity / R|_F in the loss"
    )
    orthogonal_penalty: float = option(
        0.0, at_least=0, help="weight of R_O, 0 where T is orthogonal, in the loss"
    )
    factors: tuple[tuple[int, ...], ...] = option(
        (), help="factors of widths by hand, three each: ((3, 4, 4),) for those that are 48 wide"
    )

    def validate(self) -> None:
        widths = [math.prod(triple) for triple in self.factors]
        for triple in self.factors:
            if len(triple) != 3 or min(triple) < 1:
                raise MethodError(f"tlora: factors = {triple} must be three whole numbers from 1.")
        if len(set(widths)) < len(widths):
            raise MethodError(f"tlora: factors = {self.factors} gives the same width twice.")
        if self.R + self.q == 0:
            raise MethodError("tlora: R and q are both 0; a transform or a residual is needed.")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.q) if self.rslora else self.q) if self.q else 0.0

    def sides(self, host: Host) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(I1, I2, I3) and (O1, O2, O3) of a layer."""
        return factorise(host.fan_in, self.factors), factorise(host.fan_out, self.factors)

    def parameters(self, host: Host) -> int:
        I, O = self.sides(host)
        sizes = {
            "lora": self.q * (host.fan_in + host.fan_out),
            "ring": self.q**2 * sum(I + O),
            "ttm": self.q**2 * sum(i * o for i, o in zip(I, O, strict=True)),
        }
        return self.R**2 * sum(i * i for i in I) + sizes[self.residual]

    def adapter(self, host: Host, shared: nn.Module | None = None) -> TLoRAAdapter:
        return TLoRAAdapter(self, host)

    def penalty(self, adapters: Mapping[str, Any], shared: nn.Module | None) -> Tensor | None:
        """`identity_penalty` times R_I and `orthogonal_penalty` times R_O, or None."""
        terms = []
        for adapter in adapters.values():
            if self.identity_penalty:
                terms += [self.identity_penalty * _norms(moved, (0, 1)) for moved in adapter.transform]
            if self.orthogonal_penalty:
                terms += [self.orthogonal_penalty * _skewed(core) for core in adapter.cores()]
        return torch.stack(terms).sum() if terms else None


def _norms(x: Tensor, over: tuple[int, int]) -> Tensor:
    """The sum of the Frobenius norms of matrices in two of the dimensions; at 0 its gradient is 0."""
    squares = x.square().sum(over)
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), 0).sum()


def _skewed(core: Tensor) -> Tensor:
    """R_O of one core: how far `sum_l A[i, l] (x) A[j, l]` is from that of T T^T = 1, over all i and j."""
    i, R = core.shape[0], core.shape[-1]
    product = torch.einsum("ilrs,jltu->ijrtsu", core, core).reshape(i, i, R * R, R * R)
    eye = torch.eye(i, dtype=core.dtype, device=core.device)[:, :, None, None] / R**2
    return _norms(product - eye, (2, 3))


class TLoRAAdapter(WeightAdapter):
    """The cores of one layer."""

    fast = True

    def __init__(self, method: TLoRA, host: Host):
        super().__init__(host)
        self.R, self.q, self.scale, self.form = method.R, method.q, method.scale, method.residual
        self.I, self.O = method.sides(host)
        R, q = self.R, self.q
        self.transform = nn.ParameterList([torch.zeros(i, i, R, R) for i in self.I] if R else [])
        self.B, self.C = nn.ParameterList(), nn.ParameterList()
        if q and self.form == "ttm":
            sides = list(zip(self.O, self.I, strict=True))
            self.B.extend([torch.randn(o, i, q, q) * ((q * i) ** -0.5 if d else 0.0) for d, (o, i) in enumerate(sides)])  # fmt: skip
        elif q and self.form == "ring":
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
        return _applied([core.to(x.dtype) for core in self.cores()], x, self.I)

    def residual(self, x: Tensor) -> Tensor | None:
        """`D x` for x [..., in]; None without a residual."""
        if not self.q:
            return None
        if self.form == "ttm":
            return _applied([core.to(x.dtype) for core in self.B], x, self.I)
        if self.form == "lora":
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
        moved = made_again(self.transformed, x) if self.R > 1 else self.transformed(x)
        y = frozen(moved if self.strength == 1.0 else torch.lerp(x, moved, self.strength))
        z = x.to(y.dtype)
        added = self.residual(z) if self.form == "lora" else made_again(self.residual, z)
        return y if added is None else torch.add(y, added, alpha=self.scale * self.strength)

    def changed(self, name: str, value: Tensor) -> Tensor:
        # the rows of W T are T^T applied to W's rows; D is what it makes of the unit vectors
        eye = torch.eye(self.host.fan_in, dtype=value.dtype, device=value.device)
        value = value @ self.transformed(eye).t()
        added = self.residual(eye)
        return value if added is None else value + self.scale * added.t()


def made_again(form: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`form(x)`, of which the backward keeps x alone and makes the rest again: contractions cost little and each leaves one more x."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or not torch.is_grad_enabled()
    ):
        return form(x)
    return checkpoint(form, x, use_reentrant=False, preserve_rng_state=False)


def _applied(cores: list[Tensor], x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """`M x` for x [..., I1 I2 I3] and M[i, j] = tr(A1[i1, j1] A2[i2, j2] A3[i3, j3]), one factor at a time."""
    a, b, c = cores
    h = x.reshape(-1, *sides)
    if (
        a.shape[-1] == 1
    ):  # two products without a copy: one over the first side, one over the two others together
        a, b, c = a[..., 0, 0], b[..., 0, 0], c[..., 0, 0]
        h = torch.bmm(a.expand(len(h), -1, -1), h.flatten(2))
        h = nn.functional.linear(h, torch.kron(b, c))
    else:
        h = torch.einsum("ilrs,nlmp->nimprs", a, h)
        h = torch.einsum("jmst,nimprs->nijprt", b, h)
        h = torch.einsum("kptr,nijprt->nijk", c, h)
    return h.reshape(*x.shape[:-1], -1)
