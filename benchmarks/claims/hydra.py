"""Hydra fits a mixed update better than a parallel or a sequential branch alone; a purely parallel one it does not.

claim      Kim et al. 2023, arXiv:2309.06922: parallel and sequential branches together are more expressive than either
miniature  a 32 x 128 layer, wide like the down-projections that are Hydra's own target, is fitted to W* = (I + S*) W + P* with S* of
           rank 6 and P* of rank 2. S* W is itself of low rank, so LoRA can express it; but a rank of the sequential branch costs
           2 out numbers and one of the parallel branch in + out, and there lies the gain (on a square layer there is none).
           Equal parameters: LoRA and the sequential branch get at least as many. Second target: P* alone, of rank 4
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main
from torch import Tensor

OUT, IN = 32, 128
#: parameters: r (in + out) + 2 q out
METHODS = {"hydra r=2 q=6": ("hydra", {"r": 2, "q": 6}), "lora r=5": ("lora", {"r": 5}), "sequential alone q=12": ("hydra", {"r": 0, "q": 12})}  # fmt: skip
HYDRA, LORA, SEQUENTIAL = METHODS


def product(out: int, rank: int, width: int) -> Tensor:
    """A random matrix of this rank, of singular values about 1."""
    return torch.randn(out, rank) @ torch.randn(rank, width) / (out * width) ** 0.5


def measure(seed: int, table: Table) -> None:
    W = torch.randn(OUT, IN) / IN**0.5
    mixed = W + product(OUT, 6, OUT) @ W + product(OUT, 2, IN)
    for kind, goal in (("mixed", mixed), ("parallel", W + product(OUT, 4, IN))):
        for label, (method, ranks) in METHODS.items():
            seen = fit_matrix(W, goal, method, seed, **ranks)
            table.add(f"{kind}: {label}", seen.value, seen.parameters)


def judge(table: Table) -> dict[str, bool]:
    counts = [table.parameters[f"mixed: {label}"] for label in METHODS]
    return {
        "hydra has no more parameters": counts[0] <= min(counts[1:]),
        "mixed target: hydra below lora by half, every seed": table.below(f"mixed: {HYDRA}", f"mixed: {LORA}", by=0.5),
        "mixed target: hydra below sequential alone by half, every seed": table.below(f"mixed: {HYDRA}", f"mixed: {SEQUENTIAL}", by=0.5),
        "parallel target: lora at least as good as hydra": table.as_good(f"parallel: {LORA}", f"parallel: {HYDRA}", 0.0),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
