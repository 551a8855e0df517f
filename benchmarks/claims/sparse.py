"""Trained entries chosen by Fisher information beat random ones of equal number; biases alone go far for their number.

claim      Sung et al. 2021, arXiv:2111.09839: of k trained weights, the k with the most Fisher information beat k random ones, above
           all where k is small. Ben Zaken et al. 2021, arXiv:2106.10199: training the biases alone is competitive, and better than
           as many randomly chosen parameters
miniature  a tiny GPT-2 of letters (it has biases), pretrained here on the standard library's docstrings, is adapted to Python sources
           (40 steps, the better of two learning rates) and tested on modules it has not seen. Masks have 0.1 and 0.5 % of the linear
           weights, two of the paper's levels: FISH's is computed on 32 single pieces of the new domain, sparse-delta draws its places.
           BitFit meets as many randomly drawn weights as there are biases, and LoRA r = 8 for "competitive": three quarters of its gain
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

STEPS, RATES, SAMPLES, SHARES = 40, (3e-3, 1e-2), 32, (0.001, 0.005)


def pieces(text: Tensor, count: int) -> list[Tensor]:
    """Single pieces of the text, far apart."""
    return [text[i : i + LENGTH][None] for i in torch.linspace(0, len(text) - LENGTH, count).long().tolist()]


def own_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def chosen(samples: list[Tensor], k: int) -> Callable[[nn.Module, Any, int], Plan]:
    """Attach a FISH mask of k entries."""
    return lambda model, targets, seed: fish_mask(model, samples, own_loss, k, targets, seed=seed)


def drawn(k: int) -> Callable[[nn.Module, Any, int], Plan]:
    """Attach a mask of k entries, spread over the layers by their size."""

    def attach(model: nn.Module, targets: Any, seed: int) -> Plan:
        hosts = ad.plan(model, "sparse-delta", targets=targets, n=10**9).entries
        total, left = sum(e.parameters for e in hosts), k
        share = {}
        for i, e in enumerate(hosts):
            share[e.path] = left if i == len(hosts) - 1 else round(k * e.parameters / total)
            left -= share[e.path]
        per_layer = {f"={path}": {"n": n} for path, n in share.items()}
        return ad.attach(model, "sparse-delta", targets=targets, per_layer=per_layer, seed=seed)  # fmt: skip

    return attach


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    text = code()
    base, loss, score = language_model(300, biases=True), next_letter(text), held_out(code(TEST), 8)
    samples = pieces(text, SAMPLES)
    biases = ad.plan(base, "bitfit").trainable
    total = ad.plan(base, "sparse-delta", n=10**9).trainable
    methods: dict[str, Any] = {"lora r=8": "lora", "bitfit": "bitfit", "random, as many": drawn(biases)}
    for share in SHARES:
        methods[f"fish-mask, {share:.1%}"] = chosen(samples, round(share * total))
        methods[f"random, {share:.1%}"] = drawn(round(share * total))

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, method in methods.items():
            how = {"targets": None} if label == "bitfit" else {}
            seen = adapt(base, method, loss, score, steps=STEPS, rates=RATES, seed=seed, **how)
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    gain = {label: table.mean("base") - table.mean(label) for label in ("lora r=8", "bitfit")}
    share = gain["bitfit"] / gain["lora r=8"]
    parts = {
        f"bitfit has at least three quarters of lora's gain ({share:.0%})": share >= 0.75,
        "bitfit below as many random entries, every seed": table.below("bitfit", "random, as many"),
    }
    for share in SHARES:
        fish, others = f"fish-mask, {share:.1%}", f"random, {share:.1%}"
        parts[f"{fish} below {others}, every seed"] = table.below(fish, others)
    return parts


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
