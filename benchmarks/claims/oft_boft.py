"""OFT and BOFT keep the angles between neurons, and BOFT turns far inputs into each other with fewer parameters than OFT.

claim      Qiu et al. 2023, arXiv:2306.07280: an orthogonal transform of the weights keeps the hyperspherical energy of the neurons, the sum of
           1 / |w_i - w_j| over their directions. Liu et al. 2023, arXiv:2311.06243: a product of butterfly factors reaches dense
           rotations that blocks of as many parameters do not
miniature  a 64 x 64 layer is fitted to W R*. In "far", R* joins inputs 1, 2, 4, ..., 32 apart by turns of 45 degrees, so that every input
           reaches every other; in "blocks", R* turns blocks of 8. OFT has blocks of 8 (224 parameters), BOFT six factors of blocks of 2 (192),
           LoRA rank 2 (256). The energy is measured on the fitted weights, relative to the base's
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main
from torch import Tensor

import adaptome as ad

SIZE = 64
METHODS = {"oft b=8": ("oft", {"size": 8}), "boft b=2 m=6": ("boft", {"size": 2, "factors": 6}), "lora r=2": ("lora", {"r": 2})}  # fmt: skip


def far() -> Tensor:
    """The product of turns by 45 degrees of inputs 1, 2, 4, ... apart: every entry is 1 / 8 in size."""
    R, i = torch.eye(SIZE), torch.arange(SIZE)
    for apart in (1, 2, 4, 8, 16, 32):
        sign = torch.where(i & apart == 0, 1.0, -1.0)
        R = R @ (torch.eye(SIZE) + torch.diag(sign)[:, i ^ apart]) / 2**0.5
    return R


def blocks() -> Tensor:
    """Turns of blocks of 8 by the exponentials of random skew matrices."""
    Q = 0.3 * torch.randn(SIZE // 8, 8, 8)
    return torch.block_diag(*torch.linalg.matrix_exp(Q - Q.mT))


def energy(W: Tensor) -> float:
    """The hyperspherical energy of the rows."""
    directions = torch.nn.functional.normalize(W.double(), dim=1)
    return float((1 / torch.nn.functional.pdist(directions)).sum())


def measure(seed: int, table: Table) -> None:
    # neurons that have much in common, as trained ones do: their energy is far from that of random directions
    W = (torch.randn(SIZE, SIZE) + 2 * torch.randn(SIZE)) / SIZE**0.5
    for target, R in (("far", far()), ("blocks", blocks())):
        for label, (method, settings) in METHODS.items():
            seen = fit_matrix(W, W @ R, method, seed, **settings)
            table.add(f"{target}: {label}", seen.value, seen.parameters)
            ad.merge(seen.model)
            after = energy(seen.model[0].weight.detach())  # type: ignore[index]
            table.add(f"{target}: {label}, change of energy", abs(after / energy(W) - 1))


def judge(table: Table) -> dict[str, bool]:
    oft, boft, lora = METHODS
    kept = [table.mean(f"{t}: {m}, change of energy") for t in ("far", "blocks") for m in (oft, boft)]
    moved = min(table.mean(f"{t}: {lora}, change of energy") for t in ("far", "blocks"))
    counts = [table.parameters[f"far: {m}"] for m in (boft, oft, lora)]
    return {
        f"oft and boft keep the energy (change {max(kept):.0e}), lora does not ({moved:.0e})": max(kept) < 1e-4
        and moved > 1e-3,
        f"boft has the fewest parameters, lora the most ({counts})": counts == sorted(counts),
        "far: boft below oft and lora in every seed": table.below(f"far: {boft}", f"far: {oft}")
        and table.below(f"far: {boft}", f"far: {lora}"),
        "blocks: oft below boft in every seed": table.below(f"blocks: {oft}", f"blocks: {boft}"),
    }


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
