"""Any weight adapter as LoRA factors: exact where it is low-rank, else, or at a smaller rank that is asked for, by truncated SVD with its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptome.core.adapter import Adapter, WeightAdapter
from adaptome.core.errors import MergeError
from adaptome.core.state import Attachment
from adaptome.forms.singular import singular, truncated


@dataclass(frozen=True)
class Factors:
    """`B A` of one host, the scale inside B.

    Attributes:
        A: [*, r, in], float32.
        B: [*, out, r], float32.
        error: relative Frobenius error of `B A` against the update; 0 where it is exact.
    """

    A: Tensor
    B: Tensor
    error: float


def lora_factors(attachment: Attachment, rank: int | None = None) -> dict[str, Factors]:
    """The factors of every adapter of an attachment, by target name.

    Args:
        attachment: of a model, see `ad.adapters`.
        rank: of the truncated SVD; needed for methods that are not low-rank, while factors of low-rank ones that are no larger stay exact.

    Raises:
        MergeError: an adapter is no update of the weight alone, or a rank is needed and not given.
    """
    return {path: _factors(adapter, attachment, rank) for path, adapter in attachment.adapters.items()}


@torch.no_grad()
def _factors(adapter: Adapter, attachment: Attachment, rank: int | None) -> Factors:
    A, B, exact = update_pair(adapter, attachment)
    if not exact and rank is None:
        raise MergeError(
            f"{attachment.method.name} is not low-rank: give the rank to truncate its update to, ad.export(..., rank=16); the error is told."
        )
    error = 0.0
    if rank is not None and (rank < A.shape[-2] or not exact):
        A, B, error = truncated(*singular(A.float(), B.float()), rank)
    return Factors(A.float().contiguous().cpu(), B.float().contiguous().cpu(), error)


def update_pair(adapter: Adapter, attachment: Attachment) -> tuple[Tensor, Tensor, bool]:
    """A `[*, r, in]` and B `[*, out, r]` with B A the whole update, and whether r is bounded by the method.

    Where it is not, or is above the smaller side, one of the two is the update and the other an identity.

    Raises:
        MergeError: the adapter is no update of the weight alone.
    """
    method, name = attachment.method.name, adapter.host.name
    as_lora: Any = getattr(adapter, "as_lora", None)
    exact = as_lora() if as_lora is not None else None
    if exact is not None:
        return *_no_larger(*exact), True
    if not isinstance(adapter, WeightAdapter):
        raise MergeError(
            f"{method} is not an update of weights: it has no LoRA form.\n  Serve it with adaptome, or save it with ad.save."
        )
    changes = [n for n in adapter.changes if adapter.host.has(n) or n in adapter.creates]
    if changes != [adapter.host.parameter]:
        raise MergeError(
            f"{method} on {name} changes {', '.join(changes)}, not the weight alone: LoRA has no place for that.\n  Merge it into the model instead."
        )
    W = adapter.host.weight()
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    delta = adapter.changed(adapter.host.parameter, W) - W
    if adapter.strength != 1.0:
        delta = delta * adapter.strength
    return *_beside_identity(delta), False


def _no_larger(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The factors, or the update itself beside an identity where they have more rows than its smaller side."""
    return (A, B) if A.shape[-2] <= min(B.shape[-2], A.shape[-1]) else _beside_identity(B @ A)


def _beside_identity(delta: Tensor) -> tuple[Tensor, Tensor]:
    out, width = delta.shape[-2:]
    eye = torch.eye(min(out, width), dtype=delta.dtype, device=delta.device).expand(*delta.shape[:-2], -1, -1)
    return (delta, eye) if out <= width else (eye, delta)
