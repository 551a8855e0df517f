"""LoKr as LyCORIS stores it: two factors of a Kronecker product, each whole or a product, of sizes that its `factor` makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import KeyMismatchError
from adaptome.forms.kronecker import divisors
from adaptome.interop.images.algorithms import Algorithm, Roles, kernel, matrix, number, wide

_NAMES = {"C": "lokr_w1", "Cb": "lokr_w1_a", "Ca": "lokr_w1_b", "D": "lokr_w2", "B": "lokr_w2_a", "A": "lokr_w2_b"}  # fmt: skip


class LoKr(Algorithm):
    """w1 and w2."""

    method = "lokr"
    marks = tuple(_NAMES.values())
    roles = (*marks, "lokr_t2", "alpha")
    needed = ()

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        first, second = self._factor(roles, "1", layer, where), self._factor(roles, "2", layer, where)
        taps = max(1, torch.Size(kernel(layer)).numel())
        (o1, i1), (o2, i2) = ((f[0].shape[0], f[-1].shape[1]) for f in (first, second))
        weight: Any = layer.weight
        if o1 * o2 != weight.shape[0] or i1 * i2 != wide(layer) * taps or i2 % taps:
            raise KeyMismatchError(
                f"{where}: factors of {o1} x {i1} and {o2} x {i2} do not make a weight of {list(weight.shape)}.\n  Nothing was loaded."
            )
        ranks = {f[-1].shape[0] for f in (first, second) if len(f) == 2}
        if len(ranks) > 1:
            raise KeyMismatchError(
                f"{where}: factors of the ranks {sorted(ranks)}; there is one.\n  Nothing was loaded."
            )
        r = max(ranks, default=1)
        scale = number(roles, "alpha", r, where) / r if ranks else 1.0
        # our adapter has products where the rank is below half of a side, and whole matrices elsewhere: a product is multiplied out there
        if len(second) == 2 and r >= max(o2, i2 // taps) / 2:
            second = (second[0] @ second[1],)
        if len(first) == 2 and (len(second) == 1 or r >= max(o1, i1) / 2):
            first = (first[0] @ first[1],)
        ours = r if len(second) == 2 else max(o2, i2)
        names = zip(("C",) if len(first) == 1 else ("Cb", "Ca"), first, strict=True)
        values = dict(names) | dict(zip(("D",) if len(second) == 1 else ("B", "A"), second, strict=True))
        settings = {
            "r": ours, "alpha": scale * ours, "decompose_both": len(first) == 2,
            "factor": _factor_of(weight.shape[0], wide(layer), (o1, i1), (o2, i2 // taps), where),
        }  # fmt: skip
        return settings, values

    def _factor(self, roles: Roles, i: str, layer: nn.Module, where: str) -> tuple[Tensor, ...]:
        whole, a, b, core = (roles.get(f"lokr_{key}") for key in (f"w{i}", f"w{i}_a", f"w{i}_b", f"t{i}"))
        if whole is not None and a is None and b is None and core is None:
            return (matrix(whole, where, f"lokr_w{i}"),)
        if whole is not None or a is None or b is None:
            raise KeyMismatchError(
                f"{where}: lokr_w{i} is there neither whole nor as two factors.\n  Nothing was loaded."
            )
        left, right = matrix(a, where, f"lokr_w{i}_a"), matrix(b, where, f"lokr_w{i}_b")
        if core is not None:
            weight: Any = layer.weight
            wrong = core.dim() < 3 or tuple(core.shape[2:]) != kernel(layer) or wide(layer) % right.shape[1]
            if wrong or core.shape[0] > sum(weight.shape):
                raise KeyMismatchError(f"{where}: lokr_t{i} has the shape {list(core.shape)}.\n  Nothing was loaded.")  # fmt: skip
            left, right = left.t().contiguous(), _core(core, right, where)
        if left.shape[1] != right.shape[0]:
            raise KeyMismatchError(
                f"{where}: lokr_w{i}_a and lokr_w{i}_b have {left.shape[1]} and {right.shape[0]} ranks.\n  Nothing was loaded."
            )
        return left, right

    def write(self, adapter: Any) -> Roles:
        own = {n: v.detach().float().cpu().clone() for n, v in adapter.named_parameters()}
        scale = adapter.scale * adapter.strength
        if {"C", "D"} <= own.keys():  # two whole factors have no scale there
            own["D"] *= scale
        if "D" in own and adapter.host.kind == "conv":
            taps = adapter.host.stored("weight").shape[2:]
            own["D"] = own["D"].view(own["D"].shape[0], -1, *taps)
        r = own["B"].shape[1] if "B" in own else own["Cb"].shape[1] if "Cb" in own else 1
        alpha = 1.0 if {"C", "D"} <= own.keys() else scale * r
        return {_NAMES[n]: v for n, v in own.items()} | {"alpha": torch.tensor(float(alpha))}


class KronA(LoKr):
    """Two whole factors of sizes that no `factor` of LyCORIS makes: DiffuseKronA's. Programs that form kron(w1, w2) take it as LoKr."""

    method = "diffusekrona"

    def takes(self, roles: Roles) -> bool:
        if not {"lokr_w1", "lokr_w2"} <= roles.keys():
            return False
        (o1, i1), (o2, i2) = (tuple(roles[f"lokr_w{i}"].shape[:2]) for i in (1, 2))
        try:
            _factor_of(o1 * o2, i1 * i2, (o1, i1), (o2, i2), "")
        except KeyMismatchError:
            return True
        return False

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        first, second = (matrix(roles[f"lokr_w{i}"], where, f"lokr_w{i}") for i in (1, 2))
        taps = max(1, torch.Size(kernel(layer)).numel())
        weight: Any = layer.weight
        sides = (len(first) * len(second), first.shape[1] * second.shape[1])
        if sides != (weight.shape[0], wide(layer) * taps):
            raise KeyMismatchError(
                f"{where}: factors of {list(first.shape)} and {list(second.shape)} do not make a weight of {list(weight.shape)}.\n  Nothing was loaded."
            )
        return {"a1": first.shape[0], "a2": first.shape[1]}, {"A": first, "B": second}

    def write(self, adapter: Any) -> Roles:
        A, B = (value.detach().float().cpu().clone() for value in adapter.pair())
        B *= adapter.scale * adapter.strength
        if adapter.host.kind == "conv":
            B = B.view(len(B), -1, *adapter.host.stored("weight").shape[2:])
        return {"lokr_w1": A, "lokr_w2": B, "alpha": torch.tensor(1.0)}


def _core(core: Tensor, inner: Tensor, where: str) -> Tensor:
    if core.shape[1] != inner.shape[0]:
        raise KeyMismatchError(f"{where}: lokr_t2 has {core.shape[1]} ranks, its factor {inner.shape[0]}.\n  Nothing was loaded.")  # fmt: skip
    return torch.einsum("rs...,si->ri...", core.to(inner.dtype), inner).flatten(1)


def _factor_of(out: int, width: int, first: tuple[int, int], second: tuple[int, int], where: str) -> int:
    """The `factor` that splits the layer's sides into these."""
    candidates: Iterable[int] = dict.fromkeys((-1, *first, *range(1, min(max(out, width), 4096) + 1)))
    for factor in candidates:
        if all(
            divisors(size, factor) == pair
            for size, pair in ((out, (first[0], second[0])), (width, (first[1], second[1])))
        ):
            return factor
    raise KeyMismatchError(
        f"{where}: no one factor makes {first[0]} x {first[1]} and {second[0]} x {second[1]} of {out} x {width} (LyCORIS' unbalanced_factorization).\n  Nothing was loaded."
    )
