"""Trained entries chosen by Fisher information beat random ones of equal number; biases alone go far for their number.

claim      Sung et al. 2021, arXiv:2111.09839: of k trained weights, the k with the most Fisher information beat k random ones, above
           all where k is small. Ben Zaken et al. 2021, arXiv:2106.10199: training the biases alone is competitive, and better than
           as many randomly chosen parameters
miniature  a tiny GPT-2 of letters (it has biases), pretrained here on the standard library's docstrings, is adapted to Python sources
           (100 steps, the better of two learning rates) and tested on modules it has not seen. k is the number of the biases: the FISH
           mask is computed on 64 single pieces of the new domain, over the linear weights; sparse-delta draws k places of them, or takes
           the k largest weights. Ten times k for the two masks as well. LoRA r = 8 for scale
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _harness import Measure, Table, adapt, main
from _letters import LENGTH, TEST, code, held_out, language_model, next_letter
from torch import Tensor, nn

import adaptome as ad
from adaptome.core.plan import Plan
from adaptome.methods.selective.fish_mask import fish_mask

STEPS, RATES, SAMPLES = 100, (3e-3, 1e-2), 64


def pieces(text: Tensor, count: int) -> list[Tensor]:
    """Single pieces of the text, far apart."""
    return [text[i : i + LENGTH][None] for i in torch.linspace(0, len(text) - LENGTH, count).long().tolist()]


def own_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def chosen(samples: list[Tensor], k: int) -> Callable[[nn.Module, Any, int], Plan]:
    """Attach a FISH mask of k entries."""
    return lambda model, targets, seed: fish_mask(model, samples, own_loss, k, targets, seed=seed)


def drawn(k: int, selection: str) -> Callable[[nn.Module, Any, int], Plan]:
    """Attach a mask of k entries, spread over the layers by their size."""

    def attach(model: nn.Module, targets: Any, seed: int) -> Plan:
        hosts = ad.plan(model, "sparse-delta", targets=targets, n=10**9).entries
        total, left = sum(e.parameters for e in hosts), k
        share = {}
        for i, e in enumerate(hosts):
            share[e.path] = left if i == len(hosts) - 1 else round(k * e.parameters / total)
            left -= share[e.path]
        per_layer = {f"={path}": {"n": n} for path, n in share.items()}
        return ad.attach(model, "sparse-delta", targets=targets, selection=selection, per_layer=per_layer, seed=seed)  # fmt: skip

    return attach


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    text = code()
    base, loss, score = language_model(300, biases=True), next_letter(text), held_out(code(TEST), 8)
    samples = pieces(text, SAMPLES)
    k = ad.plan(base, "bitfit").trainable
    methods: dict[str, Any] = {
        "bitfit": "bitfit",
        "fish-mask, k": chosen(samples, k),
        "random, k": drawn(k, "random"),
        "largest, k": drawn(k, "largest"),
        "fish-mask, 10 k": chosen(samples, 10 * k),
        "random, 10 k": drawn(10 * k, "random"),
        "lora r=8": "lora",
    }

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, method in methods.items():
            how = {"targets": None} if label == "bitfit" else {}
            seen = adapt(base, method, loss, score, steps=STEPS, rates=RATES, seed=seed, **how)
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    equal = len({table.parameters[key] for key in ("bitfit", "fish-mask, k", "random, k", "largest, k")}) == 1
    return {
        "equal parameters at k": equal,
        "fish-mask below random, k, every seed": table.below("fish-mask, k", "random, k"),
        "fish-mask below random, 10 k, every seed": table.below("fish-mask, 10 k", "random, 10 k"),
        "bitfit below as many random entries, every seed": table.below("bitfit", "random, k"),
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
