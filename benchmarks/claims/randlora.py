"""RandLoRA fits a full-rank update better than LoRA of the same size, and a low-rank one worse.

claim      Albert et al. 2025, arXiv:2502.00987: a full-rank sum of scaled random bases closes the gap that LoRA's low rank leaves
miniature  a 64 x 64 layer is fitted to W + dW* by gradient descent. First dW* is a random rotation, whose 64 singular values are equal:
           LoRA of rank 9 cannot do better than sqrt(1 - 9/64) = 0.927. Then dW* has rank 2: LoRA wins. RandLoRA's size is set by
           budget="lora:r=9"; its sizes come in steps, and the nearest has fewer parameters than LoRA
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main

SIZE, RANK = 64, 9


def measure(seed: int, table: Table) -> None:
    W = torch.randn(SIZE, SIZE) / SIZE**0.5
    rotation = torch.linalg.qr(torch.randn(SIZE, SIZE))[0]
    low = torch.randn(SIZE, 2) @ torch.randn(2, SIZE) / SIZE**0.5
    for kind, delta in (("flat", rotation), ("rank 2", low)):
        lora = fit_matrix(W, W + delta, "lora", seed, r=RANK)
        table.add(f"{kind}: lora", lora.value, lora.parameters)
        rand = fit_matrix(W, W + delta, "randlora", seed, budget=f"lora:r={RANK}")
        table.add(f"{kind}: randlora", rand.value, rand.parameters)


def judge(table: Table) -> dict[str, bool]:
    return {
        "randlora has no more parameters": table.parameters["flat: randlora"]
        <= table.parameters["flat: lora"],
        "flat spectrum: randlora below lora in every seed": table.below("flat: randlora", "flat: lora"),
        "rank 2: lora below randlora in every seed": table.below("rank 2: lora", "rank 2: randlora"),
    }


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
