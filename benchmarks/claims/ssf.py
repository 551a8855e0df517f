"""SSF beats a linear probe and the tuning of biases or norms, and costs nothing once it is folded in.

claim      Lian et al. 2022, arXiv:2210.08823: scaling and shifting the features after every layer does better than linear probing and
           than tuning biases, and folds into the layers, so that inference is the base's
miniature  a small ViT, pretrained here to name the directions of a red and a green grating among noise, is adapted to name a blue one's
           (120 steps, the better of two learning rates for each method; all train the new head). SSF is on every linear layer, norm and the
           patch convolution; LoRA of about as many parameters on q and v is there for comparison and is no part of the claim.
           Seeds draw the pictures, the batches and the adapters
"""

from __future__ import annotations

import copy

import torch
from _harness import Measure, Table, adapt, descend, main
from _pictures import pretrained, task

import adaptome as ad

EVERYWHERE = ["all-linear", "norms", "convs"]
SETTINGS = {
    "ssf": ("ssf", EVERYWHERE, {}),
    "scale alone": ("ssf", EVERYWHERE, {"shift": False}),
    "shift alone": ("ssf", EVERYWHERE, {"scale": False}),
    "bitfit": ("bitfit", "biases", {}),
    "norm tuning": ("norm-tuning", "norms", {}),
    "lora r=4 on q, v": ("lora", ["q", "v"], {"r": 4}),
}
PROBE, FOLDED = "head alone", "ssf, folded in"


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base = pretrained()

    def measure(seed: int, table: Table) -> None:
        loss, score = task(seed)
        rates = (3e-3, 1e-2)
        probes = []
        for rate in rates:
            probe = copy.deepcopy(base).requires_grad_(False)
            probe.classifier.requires_grad_(True)  # type: ignore[union-attr, operator]
            descend(probe, loss, 120, rate, seed, adapted=False)
            probes.append(score(probe))
        table.add(PROBE, min(probes), sum(p.numel() for p in base.classifier.parameters()))  # type: ignore[union-attr]
        for label, (method, targets, settings) in SETTINGS.items():
            seen = adapt(base, method, loss, score, steps=120, rates=rates, seed=seed, targets=targets, train="classifier", **settings)  # fmt: skip
            table.add(label, seen.value, seen.parameters)
            if label == "ssf":
                ad.merge(seen.model, keep=False)
                plain = [type(m) for m in seen.model.modules()] == [type(m) for m in base.modules()]
                table.add(FOLDED, score(seen.model) if plain else torch.inf)

    return measure


def judge(table: Table) -> dict[str, bool]:
    return {
        "ssf below the head alone, every seed": table.below("ssf", PROBE),
        "ssf's mean below bitfit's": table.mean("ssf") < table.mean("bitfit"),
        "ssf's mean below norm tuning's": table.mean("ssf") < table.mean("norm tuning"),
        "folded in, the model has the base's layers alone and within 0.002 the error of before": abs(table.mean(FOLDED) - table.mean("ssf")) <= 0.002,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "error", measurement(), judge)
