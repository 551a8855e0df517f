"""FourierFT learns with 128 numbers what LoRA of rank 1, with as many, does not.

claim      Gao et al. 2024, arXiv:2405.03003, section 4.5: on a small classification task with one 64 x 64 hidden layer to train, n = 128 Fourier
           coefficients reach 100 % where LoRA of rank 1, with the same 128 parameters, does not
miniature  the same: 30 points around each of 8 centres in the plane, a network 2-64-64-8 of which the hidden layer alone is adapted and the rest
           stays as it was drawn, 600 steps over all points. The figure is the error on the training points, as in the paper, and the loss
"""

from __future__ import annotations

import math
from typing import Any

import torch
from _harness import Table, adapt, main
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, POINTS, WIDTH = 8, 30, 64
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fourierft n=128": ("fourierft", {"n": 128, "alpha": 300.0}),
    "lora r=1": ("lora", {"r": 1}),
    "lora r=4": ("lora", {"r": 4}),
}


def points() -> tuple[Tensor, Tensor]:
    """Noisy points around centres on a circle, with their classes."""
    label = torch.arange(CLASSES).repeat_interleave(POINTS)
    angle = label * (2 * math.pi / CLASSES)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(len(label), 2), label


def measure(seed: int, table: Table) -> None:
    x, label = points()
    base = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))  # fmt: skip

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(model(x), label)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(loss(model, torch.Generator()))

    for name, (method, settings) in METHODS.items():
        seen = adapt(base, method, loss, score, steps=600, rates=(1e-2, 3e-2, 1e-1), seed=seed, targets="2", **settings)
        with torch.no_grad():
            wrong = float((seen.model(x).argmax(1) != label).float().mean())
        table.add(f"error: {name}", wrong, seen.parameters)
        table.add(f"loss: {name}", seen.value, seen.parameters)


def judge(table: Table) -> dict[str, bool]:
    ours, one, _ = METHODS
    return {
        "as many parameters as lora r=1": table.parameters[f"loss: {ours}"] == table.parameters[f"loss: {one}"],
        "loss below lora r=1 in every seed": table.below(f"loss: {ours}", f"loss: {one}"),
        "error at most that of lora r=1 in the mean": table.as_good(f"error: {ours}", f"error: {one}", 0.0),
        "error at most a hundredth": table.mean(f"error: {ours}") <= 0.01,
    }


if __name__ == "__main__":
    main(__doc__, "error, loss", measure, judge)
