"""SSF fits features that are scaled and shifted where biases cannot, and folds into the layers; a low-rank change it does not fit.

claim      Lian et al. 2022, arXiv:2210.08823: scaling and shifting the features after every layer does better than tuning biases at about
           as few parameters, and folds into the layers, so that inference is the base's
miniature  a stack of four 32-wide layers is trained to imitate one whose features are scaled, by 1 + N(0, 0.5^2), and shifted, by
           N(0, 0.5^2), channel by channel; second target: the weights are changed by updates of rank 2 instead. 400 steps, the better of
           three learning rates for each method. LoRA of rank 1 has as many parameters as SSF. The first target has SSF's form by
           construction. Seeds draw the stack, the target and the adapters
"""

from __future__ import annotations

import copy

import torch
from _harness import Table, adapt, main
from _planted import Stack, planted
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

DEPTH, WIDTH = 4, 32
METHODS = {"ssf": ("ssf", {}), "scale alone": ("ssf", {"shift": False}), "shift alone": ("ssf", {"scale": False}), "bitfit": ("bitfit", {}), "lora r=1": ("lora", {"r": 1})}  # fmt: skip
FOLDED = "scaled and shifted: ssf, folded in"


def scaled_and_shifted():  # type: ignore[no-untyped-def]
    """A stack, and loss and relative error of imitating it with its features scaled and shifted."""
    base = Stack(DEPTH, WIDTH)
    teacher = copy.deepcopy(base).requires_grad_(False)
    for layer in teacher.layers:
        gamma, beta = 1 + 0.5 * torch.randn(WIDTH), 0.5 * torch.randn(WIDTH)
        layer.weight *= gamma[:, None]  # type: ignore[operator]
        layer.bias.mul_(gamma).add_(beta)  # type: ignore[operator, union-attr]
    fixed = torch.randn(1024, WIDTH)
    with torch.no_grad():
        size = float(F.mse_loss(base(fixed), teacher(fixed)))

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        x = torch.randn(128, WIDTH, generator=generator)
        return F.mse_loss(model(x), teacher(x)) / size

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(fixed), teacher(fixed))) / size

    return base, loss, score


def measure(seed: int, table: Table) -> None:
    for kind, (base, loss, score) in (("scaled and shifted", scaled_and_shifted()), ("rank 2", planted([2] * DEPTH, WIDTH))):  # fmt: skip
        for label, (method, settings) in METHODS.items():
            seen = adapt(base, method, loss, score, steps=400, rates=(3e-3, 1e-2, 3e-2), seed=seed, targets="layers.*", **settings)  # fmt: skip
            table.add(f"{kind}: {label}", seen.value, seen.parameters)
            if f"{kind}: {label}, folded in" == FOLDED:
                ad.merge(seen.model, keep=False)
                plain = [type(m) for m in seen.model.modules()] == [type(m) for m in base.modules()]
                table.add(FOLDED, score(seen.model) if plain else torch.inf)


def judge(table: Table) -> dict[str, bool]:
    ours = "scaled and shifted: ssf"
    return {
        "scaled and shifted: ssf below bitfit by half, every seed": table.below(ours, "scaled and shifted: bitfit", by=0.5),
        "scaled and shifted: ssf below lora by half, every seed, with no more parameters": table.below(ours, "scaled and shifted: lora r=1", by=0.5)
        and table.parameters[ours] <= table.parameters["scaled and shifted: lora r=1"],
        "scaled and shifted: ssf below scale and shift alone, every seed": all(table.below(ours, f"scaled and shifted: {one} alone") for one in ("scale", "shift")),
        "folded in, the model has the base's layers alone and the same error": abs(table.mean(FOLDED) - table.mean(ours)) < 1e-5,
        "rank 2: ssf keeps over half of the error": table.mean("rank 2: ssf") > 0.5,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "relative squared error", measure, judge)
