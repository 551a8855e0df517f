"""Facts that differ between the samples of a batch, brought to the rows of the activations that a layer sees."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptome.core.errors import MergeError, StateError
from adaptome.core.hosts import Host


def per_row(values: Tensor, rows: int, what: str) -> Tensor:
    """Values `[batch, ...]` repeated to `[rows, ...]`, for layers that see a sample's windows or tokens as rows of their own.

    Args:
        values: one row per sample.
        rows: the first dimension of the activations.
        what: the fact's name, for the error.

    Raises:
        StateError: the rows are no multiple of the batch.
    """
    batch = values.shape[0]
    _check_rows(batch, rows, what)
    return values if rows == batch else values.repeat_interleave(rows // batch, 0)


def by_sample(x: Tensor, batch: int, what: str) -> Tensor:
    """Activations `[rows, ..., width]` as `[batch, n, width]`: all that a layer sees of each sample.

    Raises:
        StateError: the rows are no multiple of the batch.
    """
    _check_rows(batch, x.shape[0], what)
    return x.reshape(batch, -1, x.shape[-1])


def _check_rows(batch: int, rows: int, what: str) -> None:
    if not batch or rows % batch:
        raise StateError(
            f"{what} was steered for {batch} samples, but a layer sees {rows} rows, which is no multiple of it.\n"
            "  Steer one value per sample of the batch that the model is called with."
        )


def refuse_per_sample(value: Any, what: str, host: Host) -> None:
    """Raise MergeError when the fact is a value per sample: one weight cannot hold them."""
    if isinstance(value, Tensor) and value.dim() > 0:
        raise MergeError(
            f"{what} is steered per sample: {host.name} has no one weight for them all.\n"
            f"  Merge inside `with ad.steer({what}=...)` with a single value, or keep the adapter attached."
        )
