"""DyLoRA works at every rank after one training; LoRA works at the rank it was trained with.

claim      Valipour et al. 2022, arXiv:2210.07558: trained over a range of ranks, one adapter cut to any of them is close to a LoRA of
           that rank, with no search; a LoRA cut below its rank is not
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear
           layers, 100 steps each, one learning rate and alpha for all) and tested on modules it has not seen: LoRA r = 8 cut to
           every b, DyLoRA r = 8 cut to every b, and eight LoRAs, each trained at its rank b. So DyLoRA's row of eight figures costs
           100 steps, the eight LoRAs' 800. "Small" is a twentieth of what LoRA r = 8 gains over the base. The seeds share the base
"""

from __future__ import annotations

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad

R = 8
RANKS = range(1, R + 1)


def cut(model: nn.Module, b: int) -> None:
    """Leave a LoRA its first b components."""
    with torch.no_grad():
        for name, value in ad.parameters_of(model).items():
            (value[b:] if name.endswith(".A") else value[:, b:]).zero_()


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        each = {b: adapt(base, "lora", loss, score, steps=100, rates=(5e-3,), seed=seed, r=b) for b in RANKS}
        nested = adapt(base, "dylora", loss, score, steps=100, rates=(5e-3,), seed=seed, r=R)
        for b, seen in each.items():
            table.add(f"lora r={b}", seen.value, seen.parameters)
        for b in reversed(RANKS):  # the LoRA loses one component after another
            cut(each[R].model, b)
            table.add(f"lora r={R} cut to {b}", score(each[R].model), each[b].parameters)
        for b in RANKS:
            with ad.steer(rank=b):
                table.add(f"dylora at {b}", score(nested.model), each[b].parameters)
        for label, kind in (("lora cut", f"lora r={R} cut to"), ("dylora", "dylora at")):
            table.add(f"worst rank: {label}", max(table.values[f"{kind} {b}"][-1] for b in RANKS))
        gaps = [table.values[f"dylora at {b}"][-1] - table.values[f"lora r={b}"][-1] for b in RANKS]
        table.add("largest gap of dylora to the eight loras", max(gaps))

    return measure


def judge(table: Table) -> dict[str, bool]:
    gain = table.mean("base") - table.mean(f"lora r={R}")
    lost = [table.mean(f"worst rank: {kind}") - table.mean(f"lora r={R}") for kind in ("dylora", "lora cut")]
    return {
        f"worst rank: dylora below lora cut, every seed, and losing at most half as much ({lost[0]:.3f} against {lost[1]:.3f})": table.below("worst rank: dylora", "worst rank: lora cut") and 2 * lost[0] <= lost[1],
        f"full rank: dylora within {0.05 * gain:.3f} of lora": table.as_good(f"dylora at {R}", f"lora r={R}", 0.05 * gain),
        f"one run against eight: at most {0.05 * gain:.3f} above the lora of its rank, at every rank": all(table.as_good(f"dylora at {b}", f"lora r={b}", 0.05 * gain) for b in RANKS),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
