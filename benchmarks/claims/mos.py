"""MoS at LoRA's budget is to be at least as good as LoRA; sharing all factors between layers is to be worse.

claim      Wang et al. 2025, arXiv:2410.00938: of equal size, a higher rank from shared pools with private shards and a routing of each
           layer's own beats LoRA, while plain sharing of the same pools does not
miniature  two tasks at the budget of LoRA r = 2. Letters: a tiny Llama of six blocks, pretrained here on the standard library's docstrings,
           is adapted to Python sources and tested on unseen modules. Planted: eight residual layers learn a teacher whose layers differ
           from them by updates that share in part: six of eight directions of a pool on each side, the same pools for all layers, joined
           anew in each, and a rank-one update of the layer's own. "MoS" has whole vectors as shards, which the paper tunes, and else the
           defaults (rank as the pools allow, up to 8; a private rank of 1); with 4 shards as an ablation; "sharing" gives all rows of
           the pools to every layer in the same order, so all layers share one update
"""

from __future__ import annotations

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from _planted import Stack, taught
from torch import Tensor, nn

import adaptome as ad

R, DEPTH, BLOCKS, WIDTH = 2, 8, 6, 32
#: directions in the pools of the planted layers, and how many of them a layer uses
POOL, USED = 8, 6


def share(model: nn.Module) -> None:
    """Every layer takes all rows of the pools in order."""
    for adapter in ad.adapters(model)["default"].adapters.values():
        for index in (adapter.get_buffer("a"), adapter.get_buffer("b")):
            index.copy_(torch.arange(len(index)))


def updates() -> list[Tensor]:
    """What the teacher's layers differ by: directions from two common pools, joined anew in each layer, and one of its own."""
    inputs, outputs = torch.randn(POOL, WIDTH), torch.randn(POOL, WIDTH)
    made = []
    for _ in range(DEPTH):
        common = outputs[torch.randperm(POOL)[:USED]].T @ inputs[torch.randperm(POOL)[:USED]]
        made.append(common + torch.randn(WIDTH, 1) @ torch.randn(1, WIDTH))
    return made


def methods(layers: int) -> dict[str, tuple]:
    """Label -> method and settings."""
    one = {"r": R, "private": 0, "shards": 1, "layer_rank": R * layers, "prepare": share}
    return {
        "lora": ("lora", {"r": R}),
        "mos": ("mos", {"r": R, "shards": 1}),
        "mos, 4 shards": ("mos", {"r": R}),
        "sharing": ("mos", one),
    }


def measurement() -> Measure:
    """The function that measures a seed; the language model is pretrained once."""
    base, loss, score = language_model(300, BLOCKS), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        for label, (method, settings) in methods(BLOCKS).items():
            seen = adapt(base, method, loss, score, steps=100, rates=(5e-3, 1e-2), seed=seed, **settings)
            table.add(f"letters: {label}", seen.value, seen.parameters)
        stack, fit, error = taught(Stack(DEPTH, WIDTH), updates())
        for label, (method, settings) in methods(DEPTH).items():
            seen = adapt(stack, method, fit, error, steps=300, rates=(1e-2, 3e-2), seed=seed, targets="layers.*", **settings)  # fmt: skip
            table.add(f"planted: {label}", seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for task in ("letters", "planted"):
        lora, mos, cut, sharing = (f"{task}: {label}" for label in methods(1))
        counts = {table.parameters[k] for k in (lora, mos, cut, sharing)}
        parts[f"{task}: equal parameters"] = len(counts) == 1
        parts[f"{task}: mos at least as good as lora on average"] = table.as_good(mos, lora, 0.0)
        parts[f"{task}: sharing worse than lora, every seed"] = table.below(lora, sharing)
        parts[f"{task}: sharing worse than mos, every seed"] = table.below(mos, sharing)
    return parts


if __name__ == "__main__":
    main(__doc__, "nats a letter; planted: relative squared error", measurement(), judge)
