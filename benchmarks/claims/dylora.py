"""DyLoRA works at every rank after one training; LoRA works at the rank it was trained with.

claim      Valipour et al. 2022, arXiv:2210.07558: one training over a range of ranks replaces the search for a rank (four to seven times
           faster) without much loss at any of them, while a LoRA cut below its rank loses much
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear
           layers, one learning rate and alpha for all) and tested on modules it has not seen. 80 steps each: LoRA r = 8, also cut to
           every b; DyLoRA r = 8 at every b; LoRAs trained at each rank, the last of which is the first. One run against eight:
           DyLoRA with 160 steps, a quarter of the 640 that the eight LoRAs take. "Close" is within a tenth of what LoRA r = 8 gains
           over the base. The seeds share the base
seen       with 80 steps, an eighth of the eight LoRAs', DyLoRA is close at all ranks but the lowest, see README.md
"""

from __future__ import annotations

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad

R, STEPS = 8, 80
RANKS = range(1, R + 1)


def cut(model: nn.Module, b: int) -> None:
    """Leave a LoRA its first b components."""
    with torch.no_grad():
        for name, value in ad.parameters_of(model).items():
            (value[b:] if name.endswith(".A") else value[:, b:]).zero_()


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        each = {b: adapt(base, "lora", loss, score, steps=STEPS, rates=(5e-3,), seed=seed, r=b) for b in RANKS}  # fmt: skip
        for b, seen in each.items():
            table.add(f"lora r={b}", seen.value, seen.parameters)
        worst = []
        for b in reversed(RANKS):  # the LoRA loses one component after another
            cut(each[R].model, b)
            worst.append(score(each[R].model))
            table.add(f"lora r={R} cut to {b}", worst[-1], each[b].parameters)
        table.add("worst rank: lora cut", max(worst))
        for steps in (STEPS, 2 * STEPS):
            nested = adapt(base, "dylora", loss, score, steps=steps, rates=(5e-3,), seed=seed, r=R)
            worst = []
            for b in RANKS:
                with ad.steer(rank=b):
                    worst.append(score(nested.model))
                table.add(f"dylora, {steps} steps, at {b}", worst[-1], each[b].parameters)
            table.add(f"worst rank: dylora, {steps} steps", max(worst))

    return measure


def judge(table: Table) -> dict[str, bool]:
    full, nested = f"lora r={R}", f"dylora, {STEPS} steps"
    close = 0.1 * (table.mean("base") - table.mean(full))
    lost = {kind: table.mean(f"worst rank: {kind}") - table.mean(full) for kind in (nested, "lora cut")}
    gaps = [table.mean(f"dylora, {2 * STEPS} steps, at {b}") - table.mean(f"lora r={b}") for b in RANKS]
    gap = table.mean(f"{nested}, at {R}") - table.mean(full)
    return {
        "worst rank: dylora below lora cut, every seed": table.below(f"worst rank: {nested}", "worst rank: lora cut"),
        f"and loses at most half as much ({lost[nested]:.3f} against {lost['lora cut']:.3f})": 2 * lost[nested] <= lost["lora cut"],
        f"full rank, equal steps: close to lora ({gap:.3f}, at most {close:.3f})": gap <= close,
        f"one run against eight: close at every rank ({max(gaps):.3f}, at most {close:.3f})": max(gaps) <= close,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
