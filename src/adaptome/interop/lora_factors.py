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
    method, name = attachment.method.name, adapter.host.name
    as_lora: Any = getattr(adapter, "as_lora", None)
    exact = as_lora() if as_lora is not None else None
    if exact is not None:
        A, B = _no_larger(*exact)
        if rank is not None and rank < A.shape[-2]:
            A, B, error = truncated(*singular(A.float(), B.float()), rank)
            return Factors(A.contiguous().cpu(), B.contiguous().cpu(), error)
        return Factors(A.float().cpu(), B.float().cpu(), 0.0)
    if not isinstance(adapter, WeightAdapter):
        raise MergeError(
            f"{method} is not an update of weights: it has no LoRA form.\n  Serve it with adaptome, or save it with ad.save."
        )
    changes = [n for n in adapter.changes if adapter.host.has(n) or n in adapter.creates]
    if changes != [adapter.host.parameter]:
        raise MergeError(
            f"{method} on {name} changes {', '.join(changes)}, not the weight alone: LoRA has no place for that.\n  Merge it into the model instead."
        )
    if rank is None:
        raise MergeError(
            f"{method} is not low-rank: give the rank to truncate its update to, ad.export(..., rank=16); the error is told."
        )
    W = adapter.host.weight().float()
    delta = adapter.changed(adapter.host.parameter, W) - W
    if adapter.strength != 1.0:
        delta = delta * adapter.strength
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    A, B, _ = truncated(U, S, Vh, rank)
    error = float((B @ A - delta).norm() / delta.norm().clamp_min(1e-30))
    return Factors(A.contiguous().cpu(), B.contiguous().cpu(), error)


def _no_larger(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The factors, or the update itself beside an identity where they have more rows than its smaller side."""
    out, r, width = B.shape[-2], A.shape[-2], A.shape[-1]
    if r <= min(out, width):
        return A, B
    eye = torch.eye(min(out, width), dtype=A.dtype, device=A.device).expand(*A.shape[:-2], -1, -1)
    return (B @ A, eye) if out <= width else (eye, B @ A)
