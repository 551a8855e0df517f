"""MoS at LoRA's budget is to be at least as good as LoRA; sharing all factors between layers is to be worse.

claim      Wang et al. 2025, arXiv:2410.00938: of equal size, a higher rank from shared pools with private shards and a routing of each
           layer's own beats LoRA, while plain sharing of the same pools does not
miniature  two tasks at the budget of LoRA r = 2. Letters: a tiny Llama pretrained here on the standard library's docstrings is adapted
           to Python sources and tested on unseen modules. Planted: eight residual layers learn a teacher whose layers differ from
           them by independent updates of rank 4. "MoS" has the defaults (rank as the pools allow, up to 8; 4 shards; a private rank
           of 1); "sharing" gives all rows of the pools to every layer in the same order, so all layers share one update
seen       at this size the claim holds in part only, see README.md. Independent updates have nothing to share, and there LoRA wins
"""

from __future__ import annotations

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from _planted import planted
from torch import nn

import adaptome as ad

R, DEPTH, BLOCKS = 2, 8, 3


def share(model: nn.Module) -> None:
    """Every layer takes all rows of the pools in order."""
    for adapter in ad.adapters(model)["default"].adapters.values():
        for index in (adapter.get_buffer("a"), adapter.get_buffer("b")):
            index.copy_(torch.arange(len(index)))


def methods(layers: int) -> dict[str, tuple]:
    """Label -> method and settings."""
    one = {"r": R, "private": 0, "shards": 1, "layer_rank": R * layers, "prepare": share}
    return {"lora": ("lora", {"r": R}), "mos": ("mos", {"r": R}), "sharing": ("mos", one)}


def measurement() -> Measure:
    """The function that measures a seed; the language model is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        for label, (method, settings) in methods(BLOCKS).items():
            seen = adapt(base, method, loss, score, steps=100, rates=(5e-3, 1e-2), seed=seed, **settings)
            table.add(f"letters: {label}", seen.value, seen.parameters)
        stack, fit, error = planted([4] * DEPTH)
        for label, (method, settings) in methods(DEPTH).items():
            seen = adapt(stack, method, fit, error, steps=300, rates=(3e-3, 1e-2), seed=seed, targets="layers.*", **settings)  # fmt: skip
            table.add(f"planted: {label}", seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for task in ("letters", "planted"):
        lora, mos, sharing = (f"{task}: {label}" for label in methods(1))
        parts[f"{task}: equal parameters"] = len({table.parameters[k] for k in (lora, mos, sharing)}) == 1
        parts[f"{task}: mos at least as good as lora on average"] = table.as_good(mos, lora, 0.0)
        parts[f"{task}: sharing worse than lora, every seed"] = table.below(lora, sharing)
    return parts


if __name__ == "__main__":
    main(__doc__, "nats a letter; planted: relative squared error", measurement(), judge)
