"""LoLDU adapts a model with the pivots of its weights alone: r + 1 numbers a layer.

claim      Shi et al. 2024, arXiv:2410.13618: training the leading r pivots of the weights' LDU factorisation, with sigma, is enough to adapt a model, the
           more pivots the better; it meets LoRA of far more parameters
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources: q, k, v, o and the output
           head (60 steps, the better of two learning rates for each method), and tested on modules it has not seen. All train the
           head; its numbers are left out of the counts. Baselines: the head alone, LoRA of rank 1, and pivots between random triangles
           of the same norms in place of the weights' own ("random factors", as VeRA's, which starts as the base too)
"""

from __future__ import annotations

from typing import Any

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "loldu r=1": ("loldu", {"r": 1}),
    "loldu r=12": ("loldu", {"r": 12}),
    "loldu r=48": ("loldu", {"r": 48}),
    "random factors r=48": ("loldu", {"r": 48}),
    "lora r=1": ("lora", {"r": 1}),
}
ONE, SOME, ALL, RANDOM, LORA = METHODS
HEAD = "head alone"


def randomise(model: nn.Module) -> None:
    """Random factors of the same norms in place of those of the weights; what W x gave stays."""
    found: dict[str, Any] = dict(ad.adapters(model)["default"].adapters)
    for adapter in found.values():
        for name in ("L", "R"):
            own = adapter.get_buffer(name)
            drawn = torch.randn_like(own)
            own.copy_(drawn * (own.norm() / drawn.norm()))
        adapter.complete = False


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST))
    head = sum(p.numel() for p in base.get_submodule("lm_head").parameters())
    shared: dict[str, Any] = {"steps": 60, "rates": (1e-2, 3e-2), "targets": "attention", "train": "lm_head"}

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        still: dict[str, Any] = {**shared, "prepare": lambda model: _freeze(model)}
        seen = adapt(base, "loldu", loss, score, seed=seed, **still, r=1)
        table.add(HEAD, seen.value)
        for label, (method, settings) in METHODS.items():
            prepare = randomise if label == RANDOM else None
            seen = adapt(base, method, loss, score, seed=seed, prepare=prepare, **shared, **settings)
            table.add(label, seen.value, seen.parameters - head)

    return measure


def _freeze(model: nn.Module) -> None:
    """Leave the head alone to train."""
    for name, parameter in ad.parameters_of(model).items():
        parameter.requires_grad_("lm_head" in name)


def judge(table: Table) -> dict[str, bool]:
    fewer = table.parameters[ALL] / table.parameters[LORA]
    margin = 0.1 * (table.mean(HEAD) - table.mean(LORA))
    return {
        "one pivot and sigma below the head alone in every seed": table.below(ONE, HEAD),
        "the mean falls with r": table.mean(ALL) < table.mean(SOME) < table.mean(ONE),
        "the weights' own factors below random ones in every seed": table.below(ALL, RANDOM),
        f"with {fewer:.2f} of its parameters within {margin:.3f} of lora r=1": table.as_good(ALL, LORA, margin),
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
