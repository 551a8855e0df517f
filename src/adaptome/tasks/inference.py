"""Running a model over inputs without training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


def readable(names: Sequence[str], scores: torch.Tensor, threshold: float | None = None) -> dict[str, Any]:
    """A prediction from scores [labels], with every score rounded to 6 places.

    Args:
        threshold: of several labels, the score from which one is predicted; None for the best one.
    """
    table = {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)}
    if threshold is not None:
        return {"labels": [name for name, score in table.items() if score >= threshold], "scores": table}
    best = names[int(scores.argmax())]
    return {"label": best, "score": table[best], "scores": table}


def labelled(model: nn.Module, batches: Iterable[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The model's label and scores for every row of the batches."""
    made = []
    with evaluating(model) as device:
        for batch in batches:
            scores = model(**to_device(batch, device))["logits"].float().softmax(-1).cpu()
            made += [readable(names, row) for row in scores]
    return made


def to_device(batch: Any, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}


def moved(batch: Any, device: torch.device) -> dict[str, Any]:
    """As `to_device`, tensors in mappings too."""
    found = to_device(batch, device)
    return {
        key: to_device(value, device) if isinstance(value, dict) else value for key, value in found.items()
    }
