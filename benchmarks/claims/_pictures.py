"""Pictures of a red, a green and a blue grating among grey ones, and a small ViT that is pretrained on two of them."""

from __future__ import annotations

import torch
from _harness import Loss, Score, descend
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures `[count, 3, 28, 28]` of nine gratings of 8 x 8, any phase, and the directions `[count, 3]` (0 to 3) of the red, green, blue one.

    The other six are grey, so no token is mere noise. A direction at any phase is no linear function of the pixels.
    """
    x = 0.3 * torch.randn(count, 3, 28, 28, generator=generator)
    directions = torch.randint(4, (count, 9), generator=generator)
    order = torch.rand(count, 9, generator=generator).argsort(1)
    phase = 2 * torch.pi * torch.rand(count, 9, 1, 1, generator=generator)
    angle = (directions * torch.pi / 4)[..., None, None]
    waves = torch.sin(
        1.6 * (torch.arange(8.0)[:, None] * angle.cos() + torch.arange(8.0) * angle.sin()) + phase
    )
    colours = torch.cat([1.5 * torch.eye(3), torch.full((6, 3), 0.6)])
    for place in range(9):
        which, top, left = order[:, place], place // 3 * 8, place % 3 * 8
        wave = waves[torch.arange(count), which]
        x[:, :, top : top + 8, left : left + 8] += colours[which][..., None, None] * wave[:, None]
    return x, directions[:, :3]


def classify(x: Tensor, y: Tensor, batch: int = 16) -> Loss:
    """Cross-entropy of batches drawn from these pictures."""

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (batch,), generator=generator)
        return F.cross_entropy(model(x[rows]).logits, y[rows])

    return loss


def error(x: Tensor, y: Tensor) -> Score:
    """The share of wrong answers."""

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).logits.argmax(-1) != y).float().mean())

    return score


def pretrained() -> nn.Module:
    """A ViT of 4 blocks and 50 tokens that names the directions of the red and the green grating, with a new head for the blue one's."""
    config = ViTConfig(
        image_size=28, patch_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_labels=16
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    x, directions = pictures(6000, torch.Generator().manual_seed(1000))
    descend(model, classify(x, 4 * directions[:, 0] + directions[:, 1], 32), 600, 3e-3, 0, adapted=False)
    model.classifier = nn.Linear(32, 4)
    return model


def task(seed: int) -> tuple[Loss, Score]:
    """Loss and error of naming the blue grating's direction."""
    generator = torch.Generator().manual_seed(seed)
    (x, y), (held, truth) = pictures(1000, generator), pictures(1000, generator)
    return classify(x, y[:, 2]), error(held, truth[:, 2])
