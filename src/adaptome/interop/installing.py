"""Putting what another library's file holds on a model: checked before anything is built, and undone whole when it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from adaptome.core.attaching import attach, plan
from adaptome.core.checkpoint import LoadReport, fill
from adaptome.core.errors import (
    CheckpointError,
    FormatError,
    HostError,
    KeyMismatchError,
    MethodError,
    StateError,
    TargetError,
)
from adaptome.core.model import detach, set_trainable
from adaptome.core.state import Attachment, adapters, attachment_of, tensors_of

Put = Callable[[Attachment], Mapping[str, Tensor]]


def install(
    model: nn.Module,
    name: str,
    how: dict[str, Any],
    put: Put,
    *,
    source: str,
    numbers: int,
    settings: dict[str, Any],
    trainable: bool = False,
) -> LoadReport:
    """Attach an adapter and set its tensors; on an error the model is as it was.

    Args:
        model: the base.
        name: of the adapter.
        how: `attach`'s arguments.
        put: gives the attached adapter's tensors by our names; may refuse it.
        source: what messages name.
        numbers: how many the file holds; settings that ask for far more are refused before anything is built.
        settings: the file's, for the report.
        trainable: as `load`'s.

    Raises:
        CheckpointError: a subclass for each fault.
        StateError: the name is taken.
    """
    if name in adapters(model):
        raise StateError(
            f"an adapter called {name!r} is attached already.\n  Load it under another name, or ad.detach it first."
        )
    try:
        asked = plan(model, **how).trainable
        if (
            asked > 4 * numbers + 2**20
        ):  # before anything is built: settings may ask for more than fits in memory
            raise KeyMismatchError(
                f"{source}: its settings ask for {asked:,} numbers and it holds {numbers:,}. Nothing was loaded."
            )
        attach(model, name=name, **how)
    except TargetError as error:
        raise KeyMismatchError(f"{source}: {error}") from error
    except (MethodError, HostError) as error:
        raise FormatError(f"{source}: {error}") from error
    try:
        attachment = attachment_of(model, name)
        wanted = reshaped(attachment, put(attachment))
        fill(attachment, wanted, source)
    except CheckpointError:
        detach(model, name)
        raise
    set_trainable(model, name, trainable)
    return LoadReport(
        name, attachment.method.name, len(wanted), sum(t.numel() for t in wanted.values()),
        "module names and shapes (the file stores no more)", settings,
    )  # fmt: skip


def reshaped(attachment: Attachment, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convolution kernels as the factors are stored here, [r, in * k] and [out, r]."""
    wanted = tensors_of(attachment)
    fits = dict(tensors)
    for key, place in wanted.items():
        value = fits.get(key)
        if (
            value is not None
            and value.shape != place.shape
            and value.dim() > 2
            and value.numel() == place.numel()
        ):
            fits[key] = value.reshape(place.shape)
    return fits
