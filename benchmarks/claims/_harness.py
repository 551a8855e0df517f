"""What the claims share: seeds, equal training, a table and a verdict.

Every script here opens with the claim, its source and how the miniature tests it, and is run alone:

    python benchmarks/claims/dylora.py [--seeds 5] [--json]

It prints a row per method (parameters, mean and spread over the seeds), a line per part of the claim, and `claim holds: yes` or `no`;
the exit code is 1 when it does not hold. Methods meet the same base, data, order of batches, number of steps and learning rates.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.plan import Plan

Loss = Callable[[nn.Module, torch.Generator], Tensor]
Score = Callable[[nn.Module], float]
Measure = Callable[[int, "Table"], None]
#: a method's name, or what attaches it by itself, given model, targets and seed
Attach = str | Callable[[nn.Module, Any, int], Plan]


@dataclass
class Table:
    """What was seen: label -> one figure a seed, lower is better; and what each label trains, at most over the seeds."""

    values: dict[str, list[float]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, value: float, parameters: int = 0) -> None:
        """The figure of one seed."""
        self.values.setdefault(label, []).append(float(value))
        self.parameters[label] = max(parameters, self.parameters.get(label, 0))

    def mean(self, label: str) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values[label])

    def below(self, a: str, b: str, by: float = 0.0) -> bool:
        """Whether a is below b by this share of b in every seed."""
        return all(x < (1 - by) * y for x, y in zip(self.values[a], self.values[b], strict=True))

    def as_good(self, a: str, b: str, slack: float) -> bool:
        """Whether a's mean is above b's by no more than `slack`."""
        return self.mean(a) <= self.mean(b) + slack

    def text(self, unit: str) -> str:
        """Aligned rows."""
        wide = max(len(label) for label in self.values)
        lines = [f"{'':{wide}}  parameters  {unit}: mean ± standard deviation"]
        for label, seen in self.values.items():
            count = f"{self.parameters[label]:,}" if self.parameters[label] else "-"
            lines.append(
                f"{label:{wide}}  {count:>10}  {statistics.fmean(seen):.4f} ± {statistics.stdev(seen):.4f}"
            )
        return "\n".join(lines)


def run(
    doc: str | None,
    unit: str,
    measure: Measure,
    judge: Callable[[Table], dict[str, bool]],
    argv: Sequence[str] | None = None,
) -> int:
    """Measure every seed, print table and verdict; 0 when every part of the claim holds, else 1."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many, at least 3")
    parser.add_argument("--json", action="store_true", help="print the table and the verdict as JSON")
    args = parser.parse_args(argv)
    if args.seeds < 3:
        parser.error(f"--seeds {args.seeds}: a spread needs at least 3")
    table = Table()
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        measure(seed, table)
    parts = judge(table)
    holds = all(parts.values())
    if args.json:
        seen = {"unit": unit, "seen": table.values, "parameters": table.parameters}
        print(json.dumps(seen | {"parts": parts, "holds": holds}, indent=1))
    else:
        print(table.text(unit))
        for part, held in parts.items():
            print(f"  {'yes' if held else 'no ':3}  {part}")
        print(f"claim holds: {'yes' if holds else 'no'}")
    return 0 if holds else 1


def main(*args: Any) -> None:
    """`run`, and leave with its code."""
    sys.exit(run(*args))


# -- training ------------------------------------------------------------------------------------------------------


@dataclass
class Adapted:
    """A trained model, its figure, and how many numbers were trained."""

    model: nn.Module
    value: float
    parameters: int


def descend(
    model: nn.Module,
    loss: Loss,
    steps: int,
    rate: float,
    seed: int,
    adapted: bool = True,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
) -> None:
    """Adam with a cosine to 0 over all that is trainable; batches are drawn from `seed`; `adapted` drives the adapters' schedules."""
    optimizer = optimiser([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    if adapted:
        ad.on_step(model, 0, steps)
    for step in range(1, steps + 1):
        value = loss(model, generator)
        penalty = ad.penalty(model) if adapted else None
        (value if penalty is None else value + penalty).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if adapted:
            ad.on_step(model, step, steps)
    model.eval()


def adapt(
    base: nn.Module,
    method: Attach,
    loss: Loss,
    score: Score,
    *,
    steps: int,
    rates: Sequence[float],
    seed: int,
    targets: Any = "all-linear",
    prepare: Callable[[nn.Module], None] | None = None,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    **settings: Any,
) -> Adapted:
    """The method at the learning rate (one of `rates`) that scores best; `prepare` is called once it is attached."""
    runs = []
    for rate in rates:
        model = copy.deepcopy(base)
        if isinstance(method, str):
            plan = ad.attach(model, method, targets=targets, seed=seed, **settings)
        else:
            plan = method(model, targets, seed)
        if prepare is not None:
            prepare(model)
        descend(model, loss, steps, rate, seed, optimiser=optimiser)
        value = score(model)  # NaN where a rate made it diverge
        runs.append(Adapted(model, math.inf if math.isnan(value) else value, plan.trainable))
    return min(runs, key=lambda seen: seen.value)


def tune(
    base: nn.Module, loss: Loss, score: Score, *, steps: int, rates: Sequence[float], seed: int
) -> Adapted:
    """All weights fine-tuned, at the learning rate that scores best."""
    runs = []
    for rate in rates:
        model = copy.deepcopy(base)
        descend(model, loss, steps, rate, seed, adapted=False)
        runs.append(Adapted(model, score(model), sum(p.numel() for p in model.parameters())))
    return min(runs, key=lambda seen: seen.value)


def fit_matrix(W: Tensor, goal: Tensor, method: str, seed: int, **settings: Any) -> Adapted:
    """Fit one layer `W [out, in]` to `goal`; its value is `|W' - goal|_F / |W - goal|_F`, 1 before training.

    The loss is over white inputs, so all directions count alike.
    """
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight = nn.Parameter(W.clone())
    eye, size = torch.eye(W.shape[1]), float((W - goal).square().sum())

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return F.mse_loss(model(eye), goal.T, reduction="sum") / size

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(loss(model, torch.Generator())) ** 0.5

    rates = (3e-3, 1e-2, 3e-2)
    return adapt(nn.Sequential(layer), method, loss, score, steps=600, rates=rates, seed=seed, targets="0", **settings)  # fmt: skip
