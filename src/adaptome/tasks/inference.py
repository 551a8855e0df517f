"""Running a model over inputs without training it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; afterwards the mode is as it was. Yields the model's device."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes.items():
            module.training = mode


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Pieces of at most `size` items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def to_device(batch: Any, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
