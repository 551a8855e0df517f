"""Directions of weights ranked by how much an adapter changed them.

A change of a weight is a sum of `c_i u_i v_i^T` with unit vectors: what the layer reads along v_i it writes along u_i, by c_i more than
before. For CLIP-SVD u_i and v_i are the base's singular vectors, c_i = dS_i and the value before is S_i; for LoLDU they are its pivots'
columns and rows. For every other method they are the singular vectors of dW, and the value before is u_i^T W v_i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.errors import StateError
from adaptome.core.state import attachment_of
from adaptome.forms.rescaled import Rescaled
from adaptome.forms.singular import singular
from adaptome.interpretation.update import update_of, weight_adapter


@dataclass(frozen=True)
class DirectionChange:
    """How much one direction of a weight changed.

    Attributes:
        layer: the layer's name (`name[3]` for the fourth of fused experts), and `role` what it is in its model.
        index: its place in the base's spectrum (clip-svd, loldu), or in that of the update.
        before: u^T W v, `change` what was added to it.
        score: |change|, or its share of |W|_F.
        u, v: the direction written, [out], and read, [in]; the largest entry of u is positive.
        towards, against: the texts nearest u and -u, with their cosines; empty until `describe` finds them.
    """

    layer: str
    role: str
    index: int
    before: float
    change: float
    score: float
    u: Tensor = field(repr=False, compare=False)
    v: Tensor = field(repr=False, compare=False)
    towards: tuple[tuple[str, float], ...] = ()
    against: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the vectors."""
        own = {key: value for key, value in vars(self).items() if key not in ("u", "v")}
        texts = {
            key: [{"text": text, "cosine": cosine} for text, cosine in own[key]]
            for key in ("towards", "against")
        }
        return {**own, **texts}


def direction_changes(
    model: nn.Module,
    name: str = "default",
    *,
    top: int = 20,
    relative: bool = False,
    roles: Sequence[str] | None = None,
) -> tuple[DirectionChange, ...]:
    """The most changed directions over all layers of an adapter, the most changed first; those that did not change are left out.

    Args:
        model: with the adapter.
        name: of the adapter.
        top: how many.
        relative: rank by the change's share of |W|_F, so that layers of small weights count alike.
        roles: of the layers that count ('o', 'down', ...); None for all.

    Raises:
        StateError: the adapter is on no weight matrix.
        MergeError: it changes activations, not weights.
    """
    adapters = attachment_of(model, name).adapters
    matrices = {
        path: a
        for path, a in adapters.items()
        if len(a.host.shape) > 1 and (roles is None or a.host.role in roles)
    }
    if not matrices:
        there = sorted({f"{a.host.kind} ({a.host.role})" for a in adapters.values()})
        wanted = "" if roles is None else f" of the roles {', '.join(roles)}"
        raise StateError(
            f"{name!r} is on no matrix{wanted}, and only matrices have directions: it is on {', '.join(there)}."
        )
    found: list[DirectionChange] = []
    for path, adapter in matrices.items():
        found = sorted([*found, *_of_layer(path, adapter, top, relative)], key=lambda d: -d.score)[:top]
    return tuple(found)


@torch.no_grad()
def _of_layer(path: str, adapter: Adapter, top: int, relative: bool) -> Iterator[DirectionChange]:
    W = weight_adapter(adapter).host.weight().float()
    many = W.dim() > 2
    for expert, (U, c, V, before) in enumerate(_decomposed(adapter, W)):
        norm = float((W[expert] if many else W).norm()) if relative else 1.0
        for i in c.abs().sort(descending=True, stable=True).indices[:top].tolist():
            if c[i] == 0:
                break
            sign = torch.where(U[:, i][U[:, i].abs().argmax()] < 0, -1.0, 1.0)
            change, was = float(c[i]), float(before[i])
            score = abs(change) / max(norm, 1e-30)
            layer = f"{path}[{expert}]" if many else path
            # copies, so that the factors are not kept for the sake of a column
            yield DirectionChange(
                layer, adapter.host.role, i, was, change, score, sign * U[:, i], sign * V[:, i]
            )


def _decomposed(adapter: Adapter, W: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """`U [out, r]`, `c [r]`, `V [in, r]` with dW = U diag(c) V^T and unit columns, and `diag(U^T W V)`; for each expert."""
    if isinstance(adapter, Rescaled):
        L, R = adapter.get_buffer("L").float(), adapter.get_buffer("R").float()
        lengths = L.norm(dim=-2) * R.norm(dim=-1)
        c = adapter.strength * adapter.change().float() * lengths
        before = adapter.get_buffer("d0").float() * lengths
        parts = (L / L.norm(dim=-2, keepdim=True), c, (R / R.norm(dim=-1, keepdim=True)).mT, before)
    else:
        U, c, Vt = _singular(adapter)
        before = ((U.mT @ W) * Vt).sum(-1)
        # u and v are known up to a common sign; where what was there before is negative it was made weaker, told as S and dS are
        sign = torch.where(before < 0, -1.0, 1.0)
        c = c.where(c > 1e-6 * c.amax(-1, keepdim=True).clamp_min(1e-30), 0)  # what rounding leaves of rank
        parts = (U * sign[..., None, :], c * sign, Vt.mT, before * sign)
    yield from zip(*parts, strict=True) if W.dim() > 2 else [parts]


def _singular(adapter: Adapter) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of the update; of a low-rank one by its factors, without the matrix."""
    as_lora: Any = getattr(adapter, "as_lora", None)
    factors = as_lora() if as_lora is not None else None
    if factors is None:
        return torch.linalg.svd(update_of(adapter), full_matrices=False)
    A, B = (factor.float() for factor in factors)
    return singular(A, B)
