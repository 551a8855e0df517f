"""MoE-LoRA fits a mixture of tasks better than one LoRA of its size; its balance spreads the work; preconditioning converges faster.

claim      Sun et al. 2025, arXiv:2502.15828: a mixture of low-rank experts beats a single LoRA of equal parameters, and Riemannian
           preconditioning of the experts' gradients, and freeing them of the gates, makes it converge faster; the load balance as Fedus et al. 2021, arXiv:2101.03961
miniature  a 32 x 32 layer learns a mixture: a sample is of one of four kinds, told by the mean of its input, and each kind has its own
           update of rank 2. MoE-LoRA has four experts of rank 2, two active at a sample; LoRA has its total rank, 8 (10 with the router's
           parameters), or its active rank, 4. Adam, 400 steps, the best of three learning rates,
           all on held-out samples. Balance: the largest share of the choices that an expert gets, where three quarters of the samples
           are of one kind; even is 0.25. Convergence: plain gradient steps, a quarter as many, at the best of five learning rates
"""

from __future__ import annotations

import torch
from _harness import Adapted, Loss, Score, Table, adapt, main
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

WIDTH, KINDS, R = 32, 4, 2
STEPS, RATES = 400, (3e-3, 1e-2, 3e-2)
PLAIN = (0.03, 0.1, 0.3, 1.0, 3.0)
EXPERTS = {"r": R, "experts": KINDS, "top_k": 2, "alpha": float(R)}


def mixture(rare: bool) -> tuple[nn.Module, Loss, Score]:
    """A layer, and loss and relative error of imitating it with each kind's update; `rare`: three quarters of the samples are of one kind."""
    W = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
    updates = torch.randn(KINDS, WIDTH, R) @ torch.randn(KINDS, R, WIDTH) / WIDTH
    means = 3 * F.normalize(torch.randn(KINDS, WIDTH), dim=1)
    odds = torch.tensor([9.0, 1.0, 1.0, 1.0]) if rare else torch.ones(KINDS)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kind = torch.multinomial(odds, count, replacement=True, generator=generator)
        x = means[kind] + torch.randn(count, WIDTH, generator=generator)
        return x, x @ W.T + torch.einsum("noi,ni->no", updates[kind], x)

    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.weight = nn.Parameter(W.clone())
    base = nn.Sequential(layer)
    fixed, goal = draw(2048, torch.Generator().manual_seed(12345))
    with torch.no_grad():
        size = float(F.mse_loss(base(fixed), goal))

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        x, y = draw(128, generator)
        return F.mse_loss(model(x), y) / size

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(fixed), goal)) / size

    score.inputs = fixed  # type: ignore[attr-defined]
    return base, loss, score


def busiest(seen: Adapted, x: Tensor) -> float:
    """The largest share of the choices on x that one expert gets."""
    adapter = ad.adapters(seen.model)["default"].adapters["0"]
    chosen = (adapter.gates(x)[0] > 0).float().mean(0)  # type: ignore[operator]
    return float(chosen.max() / chosen.sum())


def measure(seed: int, table: Table) -> None:
    base, loss, score = mixture(rare=False)
    for label, method, settings in (
        ("moe-lora 4 x r=2", "moe-lora", EXPERTS),
        ("lora r=10", "lora", {"r": 10, "alpha": 10.0}),
        ("lora r=4", "lora", {"r": 4, "alpha": 4.0}),
    ):
        seen = adapt(base, method, loss, score, steps=STEPS, rates=RATES, seed=seed, targets="0", **settings)
        table.add(label, seen.value, seen.parameters)
    for label, how in (
        ("as they are", {}),
        ("preconditioned", {"riemann": True}),
        ("preconditioned, rescaled", {"riemann": True, "rescale": "sqrt"}),
    ):
        plain = adapt(base, "moe-lora", loss, score, steps=STEPS // 4, rates=PLAIN, seed=seed, targets="0", optimiser=torch.optim.SGD, delta=1e-2, **how, **EXPERTS)  # fmt: skip
        table.add(f"plain steps, {label}", plain.value, plain.parameters)
    base, loss, score = mixture(rare=True)
    for balance in (0.0, 1.0):
        seen = adapt(base, "moe-lora", loss, score, steps=STEPS, rates=RATES[1:2], seed=seed, targets="0", balance=balance, **EXPERTS)  # fmt: skip
        table.add(f"(busiest expert, balance {balance})", busiest(seen, score.inputs))  # type: ignore[attr-defined]


def judge(table: Table) -> dict[str, bool]:
    experts, total, active = list(table.values)[:3]
    return {
        "moe-lora has no more parameters than lora r = 10": table.parameters[experts] <= table.parameters[total],
        "mixture: moe-lora below lora of equal total size by half, every seed": table.below(experts, total, by=0.5),
        "and below lora of its active size by half, every seed": table.below(experts, active, by=0.5),
        "plain gradient steps: preconditioned below as they are by a quarter, on average": table.mean("plain steps, preconditioned") < 0.75 * table.mean("plain steps, as they are"),
        "rescaled by the gates below preconditioned alone, on average": table.mean("plain steps, preconditioned, rescaled") < table.mean("plain steps, preconditioned"),
        "the balance lowers the busiest expert's share, every seed": table.below("(busiest expert, balance 1.0)", "(busiest expert, balance 0.0)"),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "relative squared error", measure, judge)
