"""LoHa and LoKr fit updates of high rank better than LoRA with as many parameters.

claim      Hyeon-Woo et al. 2021 (FedPara), arXiv:2108.06098: an entrywise product of two rank-r matrices has rank up to r^2, so it reaches
           updates that a low rank of as many parameters does not; Edalati et al. 2022 (KronA), arXiv:2212.10650, and Yeh et al. 2023
           (LyCORIS), arXiv:2309.14859: so does a Kronecker product
miniature  a 64 x 64 layer is fitted to W + dW*. "flat": dW* is a random rotation, with 64 equal singular values; "entrywise": an entrywise
           product of two matrices of rank 4; "kron": a Kronecker product of two 8 x 8 matrices; "rank 2": LoRA's own, told and not judged. LoHa r = 4 meets LoRA
           r = 8 (1,024 parameters each), LoKr with 8 x 8 factors LoRA r = 1 (128 each)
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main
from torch import Tensor

SIZE = 64
METHODS = {
    "loha r=4": ("loha", {"r": 4}),
    "lora r=8": ("lora", {"r": 8}),
    "lokr 8 x 8": ("lokr", {"r": SIZE, "alpha": float(SIZE), "factor": 8}),
    "lora r=1": ("lora", {"r": 1}),
}


#: the methods that meet on each update
MEETINGS = {"flat": tuple(METHODS), "entrywise": ("loha r=4", "lora r=8"), "kron": ("lokr 8 x 8", "lora r=1"), "rank 2": ("loha r=4", "lora r=8")}  # fmt: skip


def updates() -> dict[str, Tensor]:
    """Each of LoRA's scale: |dW| = 8."""
    low = torch.randn(4, SIZE, 4) @ torch.randn(4, 4, SIZE)
    found = {
        "flat": torch.linalg.qr(torch.randn(SIZE, SIZE))[0],
        "entrywise": low[0] * low[1],
        "kron": torch.kron(torch.randn(8, 8), torch.randn(8, 8)),
        "rank 2": torch.randn(SIZE, 2) @ torch.randn(2, SIZE),
    }
    return {name: delta * (SIZE**0.5 / delta.norm()) for name, delta in found.items()}


def measure(seed: int, table: Table) -> None:
    W = torch.randn(SIZE, SIZE) / SIZE**0.5
    for kind, delta in updates().items():
        for label in MEETINGS[kind]:
            method, settings = METHODS[label]
            seen = fit_matrix(W, W + delta, method, seed, **settings)
            table.add(f"{kind}: {label}", seen.value, seen.parameters)


def judge(table: Table) -> dict[str, bool]:
    loha, more, lokr, one = METHODS
    pairs = {loha: more, lokr: one}
    counts = table.parameters
    return {
        "as many parameters": all(counts[f"flat: {a}"] == counts[f"flat: {b}"] for a, b in pairs.items()),
        "entrywise: loha below lora in every seed": table.below(f"entrywise: {loha}", f"entrywise: {more}"),
        "kron: lokr below lora in every seed": table.below(f"kron: {lokr}", f"kron: {one}"),
        "flat: loha below lora in every seed": table.below(f"flat: {loha}", f"flat: {more}"),
        "flat: lokr below lora in every seed": table.below(f"flat: {lokr}", f"flat: {one}"),
    }


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
