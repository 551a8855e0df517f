"""AdaLoRA's budget goes to the layers that need it, and fits them better than LoRA with the same final rank.

claim      Zhang et al. 2023, arXiv:2303.10512: moving a rank budget by importance beats spreading it evenly
miniature  eight residual layers learn a teacher that differs from them in two, by updates of rank 8. Both methods end with 16 ranks in
           all: LoRA two a layer, AdaLoRA (starting from 8 a layer, else its defaults) where it chooses. During training AdaLoRA has
           more parameters than LoRA, as in the paper; the table counts what is left at the end. The better of two learning rates
"""

from __future__ import annotations

from _harness import Table, adapt, main
from _planted import planted

import adaptome as ad

RANKS, R, WIDTH = (0, 8, 0, 0, 0, 0, 8, 0), 2, 32


def measure(seed: int, table: Table) -> None:
    base, loss, score = planted(RANKS, WIDTH)
    lora = adapt(base, "lora", loss, score, steps=400, rates=(3e-3, 1e-2), seed=seed, targets="layers.*", r=R)
    table.add("lora", lora.value, lora.parameters)
    moved = adapt(base, "adalora", loss, score, steps=400, rates=(3e-3, 1e-2), seed=seed, targets="layers.*", r=R, init_r=8)  # fmt: skip
    kept = [int(a.get_buffer("kept").sum()) for a in ad.adapters(moved.model)["default"].adapters.values()]
    table.add("adalora", moved.value, sum(kept) * (2 * WIDTH + 1))
    table.add("(ranks of 16 outside the two changed layers)", sum(k for k, r in zip(kept, RANKS, strict=True) if not r))  # fmt: skip


def judge(table: Table) -> dict[str, bool]:
    astray = table.mean("(ranks of 16 outside the two changed layers)")
    more = table.parameters["adalora"] / table.parameters["lora"] - 1
    return {
        f"equal final rank (E adds {100 * more:.1f} % to the count)": more < 0.02,
        f"adalora puts more on the changed layers than an even spread ({16 - astray:.1f} against 4)": 16
        - astray
        > 4,
        "adalora below lora by half, every seed": table.below("adalora", "lora", by=0.5),
    }


if __name__ == "__main__":
    main(__doc__, "relative squared error", measure, judge)
