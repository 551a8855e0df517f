"""DiffuseKronA recovers a Kronecker update that LoRA of its size cannot, and holds steadier over learning rates.

claim      Marjit et al. 2024, arXiv:2402.17412: a Kronecker update of the attention's maps needs fewer parameters than LoRA for as good a
           subject, thin first factors are better than square ones, and it is less sensitive to the learning rate
miniature  first a 48 x 64 layer is fitted to W + A (x) B with A [16, 4], and to W + an update of rank 1: KronA 16 x 4 and LoRA r = 1 have 112
           parameters each, LoRA r = 8 has 896. Then a tiny diffusion model (two attention blocks over the 16 patches of 8 x 8 pictures), pretrained
           here on random blobs, is adapted to one picture: 100 steps at each of five learning rates from 1e-4 to 1e-2, q, k, v and o of 32 x 32,
           KronA 8 x 4 and 4 x 8 against LoRA r = 1 (64 numbers a layer each). What is told is the noise error
           on the picture, at the best rate, and its standard deviation over the rates. The sensitivity is told, not judged
"""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import torch
from _harness import Measure, Table, descend, fit_matrix, main
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

SIDE, PATCH, WIDTH, STEPS = 8, 2, 32, 100
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    "krona 8 x 4": ("diffusekrona", {"a1": 8, "a2": 4}),
    "krona 4 x 8": ("diffusekrona", {"a1": 4, "a2": 8}),
    "lora r=1": ("lora", {"r": 1, "alpha": 1.0}),
}


class Block(nn.Module):
    """Self-attention over patches, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:])
        q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        x = x + self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, x.shape[-1:]))))


class Denoiser(nn.Module):
    """The noise in pictures `[batch, 8, 8]` at times `[batch]` from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.time = nn.Linear(PATCH * PATCH, WIDTH), nn.Linear(16, WIDTH)
        self.place = nn.Parameter(0.1 * torch.randn(16, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(WIDTH, PATCH * PATCH)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        waves = time[:, None] * 2.0 ** torch.arange(8)
        z = self.patches(x.unflatten(2, (-1, PATCH)).unflatten(1, (-1, PATCH)).transpose(2, 3).reshape(-1, 16, PATCH * PATCH))
        z = z + self.place + self.time(torch.cat([waves.sin(), waves.cos()], 1))[:, None]
        for block in self.blocks:
            z = block(z)
        return self.out(z).view(-1, 4, 4, PATCH, PATCH).transpose(2, 3).reshape(-1, SIDE, SIDE)


def blobs(count: int, generator: torch.Generator) -> Tensor:
    """Pictures of one round blob each."""
    middle = torch.rand(count, 2, 1, generator=generator) * SIDE
    width = 1 + 2 * torch.rand(count, 1, generator=generator)
    y, x = (torch.exp(-(((torch.arange(SIDE) - middle[:, i]) / width) ** 2)) for i in (0, 1))
    return 2 * y[:, :, None] * x[:, None, :] - 1


def noise_error(model: nn.Module, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The DreamBooth loss: the mean squared error of the noise that is told."""
    time, noise = torch.rand(len(pictures), generator=generator), torch.randn(pictures.shape, generator=generator)
    signal = (time * math.pi / 2).cos()[:, None, None]
    seen = signal * pictures + (1 - signal.square()).sqrt() * noise
    return F.mse_loss(model(seen, time), noise)


def subject() -> Tensor:
    """A picture unlike the blobs: random stripes."""
    return torch.sign(torch.randn(SIDE, 1)) * torch.sign(torch.randn(1, SIDE))


def measurement() -> Measure:
    """The function that measures a seed; the denoiser is pretrained once."""
    torch.manual_seed(0)
    base = Denoiser()
    descend(base, lambda m, g: noise_error(m, blobs(32, g), g), 600, 3e-3, seed=0, adapted=False)

    def recover(seed: int, table: Table) -> None:
        W = torch.randn(48, 64) / 8
        kron = torch.kron(torch.randn(16, 4), torch.randn(3, 16))
        low = torch.randn(48, 1) @ torch.randn(1, 64)
        for kind, delta in (("kron", kron), ("rank 1", low)):
            goal = W + delta * (48**0.5 / delta.norm())
            krona = fit_matrix(W, goal, "diffusekrona", seed, a1=16, a2=4)
            table.add(f"{kind}: krona 16 x 4", krona.value, krona.parameters)
            for r in (1, 8) if kind == "kron" else (1,):
                lora = fit_matrix(W, goal, "lora", seed, r=r)
                table.add(f"{kind}: lora r={r}", lora.value, lora.parameters)

    def tune(seed: int, table: Table) -> None:
        picture = subject()[None]
        fixed = torch.Generator()
        with torch.no_grad():
            table.add("subject: base", float(noise_error(base, picture.expand(512, -1, -1), fixed.manual_seed(1))))
        for label, (method, settings) in TUNED.items():
            seen = []
            for rate in RATES:
                model = copy.deepcopy(base)
                plan = ad.attach(model, method, targets=["*to_q", "*to_k", "*to_v", "*to_out"], seed=seed, **settings)
                descend(model, lambda m, g: noise_error(m, picture.expand(16, -1, -1), g), STEPS, rate, seed)
                with torch.no_grad():
                    seen.append(float(noise_error(model, picture.expand(512, -1, -1), fixed.manual_seed(1))))
            table.add(f"subject: {label}, best rate", min(seen), plan.trainable)
            table.add(f"subject: {label}, deviation over rates", statistics.stdev(seen), plan.trainable)

    def measure(seed: int, table: Table) -> None:
        recover(seed, table)
        tune(seed, table)

    return measure


def judge(table: Table) -> dict[str, bool]:
    krona, lora = "subject: krona 8 x 4, best rate", "subject: lora r=1, best rate"
    counts = table.parameters
    return {
        "as many parameters as lora r=1": counts["kron: krona 16 x 4"] == counts["kron: lora r=1"]
        and counts[krona] == counts[lora],
        "kron: recovered to a thousandth": max(table.values["kron: krona 16 x 4"]) < 1e-3,
        "kron: lora with eight times the parameters does not": min(table.values["kron: lora r=8"]) > 0.1,
        "rank 1: lora below krona in every seed": table.below("rank 1: lora r=1", "rank 1: krona 16 x 4"),
        "subject: krona's mean not above lora's": table.as_good(krona, lora, 0.0),
    }


if __name__ == "__main__":
    main(__doc__, "relative error, noise error", measurement(), judge)
