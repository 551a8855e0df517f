"""TLoRA fits a near-identity transform of the weight with fewer parameters than LoRA; a purely low-rank update it does not.

claim      Tao et al. 2025, arXiv:2501.08727: a tensor-ring transform with a small residual needs fewer parameters than LoRA, because
           fine-tuned weights differ from the pretrained ones by more than a low-rank matrix
miniature  a 64 x 64 layer is fitted to W* = W Q + D: Q a dense rotation near the identity, the Kronecker product of three 4 x 4
           rotations, and D of rank 1 and a tenth of the change. The target is of the form that TLoRA has, so this shows that it is
           reached by training and what LoRA pays for the same, not that fine-tuned weights look like it. Second target: W + rank 2
methods    "lora residual": R = 1, q = 1, the paper's TLoRA*(1, 1); "ring": R = 1, q = 2, its TLoRA(1, 2)
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main
from torch import Tensor

SIZE, RANKS = 64, (1, 2, 4, 8)
TLORA = {"lora residual": {"R": 1, "q": 1}, "ring": {"R": 1, "q": 2, "residual": "ring"}}


def rotation() -> Tensor:
    """A Kronecker product of three rotations by about 0.3."""
    A, B, C = (torch.linalg.matrix_exp(0.15 * (M - M.T)) for M in torch.randn(3, 4, 4))
    return torch.kron(torch.kron(A, B), C)


def measure(seed: int, table: Table) -> None:
    W = torch.randn(SIZE, SIZE) / SIZE**0.5
    turned = W @ rotation()
    low, two = torch.randn(SIZE, 1) @ torch.randn(1, SIZE), torch.randn(SIZE, 2) @ torch.randn(2, SIZE)
    mixed = turned + 0.1 * (turned - W).norm() * low / low.norm()
    for kind, goal in (("turned", mixed), ("rank 2", W + two / SIZE)):
        for rank in RANKS:
            seen = fit_matrix(W, goal, "lora", seed, r=rank)
            table.add(f"{kind}: lora r={rank}", seen.value, seen.parameters)
        for label, settings in TLORA.items():
            seen = fit_matrix(W, goal, "tlora", seed, **settings)
            table.add(f"{kind}: tlora, {label}", seen.value, seen.parameters)


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for label in TLORA:
        name = f"turned: tlora, {label}"
        parts[f"{label}: fewer parameters than lora r=2"] = table.parameters[name] < table.parameters["turned: lora r=2"]  # fmt: skip
        parts[f"turned, {label}: below lora r=2 by half, every seed"] = table.below(name, "turned: lora r=2", by=0.5)  # fmt: skip
        parts[f"turned, {label}: below lora r=8, every seed"] = table.below(name, "turned: lora r=8")
        parts[f"rank 2: lora r=2 at least as good as {label}"] = table.as_good("rank 2: lora r=2", f"rank 2: tlora, {label}", 0.0)  # fmt: skip
    return parts


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
