r"""Which blocks of a vision transformer to train whole in another domain: what each block's patches tell, on pictures of that domain.

    eigenvalue, variance   mean and variance of the covariance's eigenvalues over patches, of features brought to mean 0
    place                  accuracy of a linear probe from a patch's features to its position: local information
    kind                   accuracy of a linear probe from the mean patch to the picture's label: global information

Blocks with small eigenvalues that tell little of the place and much of the kind are best trained whole; in DINOv2 these are the last ones
(ExPLoRA, arXiv:2406.10973). Pictures that train the probes and those that they are scored on are different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockTold:
    """What one block's patches tell; `kind` is None without labels."""

    block: int
    eigenvalue: float
    variance: float
    place: float
    kind: float | None


@torch.no_grad()
def blocks_told(
    encoder: nn.Module, pixels: Tensor, labels: Sequence[Any] | None = None, skip: int = 1, held: float = 0.5
) -> list[BlockTold]:
    """A row for each block of a ViT, DINOv2 or the like.

    Args:
        encoder: gives `hidden_states` of tokens [B, skip + N, D].
        pixels: of pictures of the domain, as the encoder takes them [B, C, H, W].
        labels: of the pictures; None where they have none.
        skip: tokens that stand before the patches.
        held: share of the pictures that the probes are scored on.
    """
    training = encoder.training
    encoder.eval()
    states = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    encoder.train(training)
    split = max(1, round(len(pixels) * (1 - held)))
    return [
        _told(number, state[:, skip:].float().cpu(), labels, split) for number, state in enumerate(states)
    ]


def _told(block: int, tokens: Tensor, labels: Sequence[Any] | None, split: int) -> BlockTold:
    rows = tokens.flatten(0, 1)
    values = torch.linalg.eigvalsh(torch.cov(rows.T.double()))
    places = np.tile(np.arange(tokens.shape[1]), len(tokens)).reshape(len(tokens), -1)
    place = _probe(tokens[:split].flatten(0, 1), places[:split].ravel(), tokens[split:].flatten(0, 1), places[split:].ravel())  # fmt: skip
    kind = None
    if labels is not None:
        known, mean = np.asarray(labels), tokens.mean(1)
        kind = _probe(mean[:split], known[:split], mean[split:], known[split:])
    return BlockTold(block, float(values.mean()), float(values.var()), place, kind)


def _probe(x: Tensor, y: np.ndarray, asked: Tensor, right: np.ndarray) -> float:
    """Accuracy of a linear map to one-hot labels, fitted by ridge regression on standardised columns."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    kinds, numbers = np.unique(y, return_inverse=True)
    a = torch.nn.functional.pad((x - mean) / std, (0, 1), value=1.0).double()
    b = torch.nn.functional.one_hot(torch.from_numpy(numbers.reshape(-1)), len(kinds)).double()
    ridge = 1e-3 * len(a) * torch.eye(a.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
    said = torch.nn.functional.pad((asked - mean) / std, (0, 1), value=1.0).double() @ weight
    return float((kinds[said.argmax(1).numpy()] == right).mean())
