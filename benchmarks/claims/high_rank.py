"""C3A, GraLoRA, HiRA, MiSS, WaveFT and HRA beside LoRA of their size, where the update is not of low rank.

claim      Chen et al. 2024 (C3A), arXiv:2407.19342, Jung et al. 2025 (GraLoRA), arXiv:2505.20355, Huang et al. 2025 (HiRA), ICLR 2025, and
           Bilican et al. 2025 (WaveFT), arXiv:2505.12532: with as many parameters their updates have a higher rank than LoRA's, and fit
           better; Kang and Yin 2024 (MiSS), arXiv:2409.15371: one repeated matrix does as well as LoRA; Yuan et al. 2024 (HRA),
           arXiv:2405.17484: reflections adapt as well as LoRA of their size and keep the lengths of W's rows
miniature  a 64 x 64 layer is fitted to W'. "flat": W' = W + a random rotation, with 64 equal singular values; "turned": W' = W R, R a random
           rotation near the identity; "rank 2": LoRA's own, told and not judged. All have 1,024 parameters, as LoRA r = 8, or 128, as LoRA
           r = 1
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main
from torch import Tensor

SIZE = 64
MANY = {
    "lora r=8": ("lora", {"r": 8}),
    "c3a b=4": ("c3a", {"size": 4}),
    "gralora r=8 k=4": ("gralora", {"r": 8, "k": 4, "alpha": 16.0}),
    "hira r=8": ("hira", {"r": 8}),
    "miss r=16": ("miss", {"r": 16}),
    "waveft n=1024": ("waveft", {"n": 1024, "alpha": 1.0}),
    "hra r=16": ("hra", {"r": 16}),
}
FEW = {
    "lora r=1": ("lora", {"r": 1}),
    "c3a b=32": ("c3a", {"size": 32}),
    "waveft n=128": ("waveft", {"n": 128, "alpha": 1.0}),
}
HIGH = ("c3a b=4", "gralora r=8 k=4", "hira r=8", "waveft n=1024")


def goals(W: Tensor) -> dict[str, Tensor]:
    """What W is fitted to; each as far away as the rotation."""
    low = torch.randn(SIZE, 2) @ torch.randn(2, SIZE)
    skew = torch.randn(SIZE, SIZE)
    turned = W @ torch.matrix_exp(0.5 * (skew - skew.T) / SIZE**0.5)
    return {
        "flat": W + torch.linalg.qr(torch.randn(SIZE, SIZE))[0],
        "turned": turned,
        "rank 2": W + low * (SIZE**0.5 / low.norm()),
    }


def measure(seed: int, table: Table) -> None:
    W = torch.randn(SIZE, SIZE) / SIZE**0.5
    for kind, goal in goals(W).items():
        for label, (method, settings) in (MANY | (FEW if kind == "flat" else {})).items():
            seen = fit_matrix(W, goal, method, seed, **settings)
            table.add(f"{kind}: {label}", seen.value, seen.parameters)


def judge(table: Table) -> dict[str, bool]:
    counts = table.parameters
    return {
        "as many parameters": all(counts[f"flat: {label}"] == 1024 for label in MANY)
        and all(counts[f"flat: {label}"] == 128 for label in FEW),
        **{
            f"flat: {label} below lora r=8 in every seed": table.below(f"flat: {label}", "flat: lora r=8")
            for label in HIGH
        },
        **{
            f"flat: {label} below lora r=1 in every seed": table.below(f"flat: {label}", "flat: lora r=1")
            for label in FEW
            if label != "lora r=1"
        },
        "flat: miss within 0.05 of lora": table.as_good("flat: miss r=16", "flat: lora r=8", 0.05),
        "turned: hra within 0.05 of lora": table.as_good("turned: hra r=16", "turned: lora r=8", 0.05),
    }


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
