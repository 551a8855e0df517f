"""Prompts and prefixes that start from words adapt a language model better than random ones where there is little to learn from.

claim      Li and Liang 2021, arXiv:2101.00190, section 7.4: with few examples a prefix that starts from the activations of real words beats
           one that starts at random; Lester et al. 2021, arXiv:2104.08691, section 3.2: prompts that start from the vocabulary's
           embeddings beat random ones, in models that are not very large. Hu et al. 2023, arXiv:2304.01933: LoRA beats a prefix of 10
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to its sources with 64 pieces of 64 letters,
           drawn by the seed (60 steps of 16 of them, 15 times over, the better of two learning rates for each method), and tested on modules
           it has not seen. The words are a line of code. Random starts are N(0, 0.02^2); all parameters of a pair of starts are equal.
           All seeds share the pretrained base
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _harness import Loss, Measure, Table, adapt, main
from _letters import BATCH, LENGTH, TEST, code, held_out, language_model
from torch import Tensor, nn

import adaptome as ad

WORDS = "\n        if self.x is None:\n            return"
P, PIECES, STEPS, RATES = 10, 64, 60, (1e-2, 1e-1)
#: method, settings, and how many letters of the line it starts from (0: as the settings say)
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "lora r=8": ("lora", {"r": 8, "targets": "all-linear"}, 0),
    "prefix p=10, random": ("prefix-tuning", {"p": P, "targets": "attention-blocks"}, 0),
    "prefix p=10, words": ("prefix-tuning", {"p": P, "targets": "attention-blocks"}, P),
    "prompt p=20, random": ("prompt-tuning", {"p": 2 * P, "init": "normal", "targets": "backbones"}, 0),
    "prompt p=20, vocabulary": ("prompt-tuning", {"p": 2 * P, "targets": "backbones"}, 0),
    "prompt p=20, words": ("prompt-tuning", {"p": 2 * P, "targets": "backbones"}, 2 * P),
}
LORA, PREFIX, PREFIX_WORDS, PROMPT, VOCABULARY, PROMPT_WORDS = METHODS


def starting(letters: int) -> Callable[[nn.Module], None] | None:
    """What sets a prompt to the last letters of the line."""
    ids = list(WORDS.encode())[-letters:]
    return (lambda model: void(ad.prompt_from(model, ids))) if letters else None


def void(_: object) -> None:
    """Nothing."""


def few(text: Tensor, seed: int) -> Loss:
    """The loss on batches of the same few pieces."""
    first = torch.randint(len(text) - LENGTH, (PIECES, 1), generator=torch.Generator().manual_seed(seed))
    pieces = text[first + torch.arange(LENGTH)]

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        batch = pieces[torch.randperm(PIECES, generator=generator)[:BATCH]]
        return model(input_ids=batch, labels=batch).loss  # type: ignore[no-any-return]

    return loss


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, text, score = language_model(300), code(), held_out(code(TEST))

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        loss = few(text, seed)
        for label, (method, settings, letters) in METHODS.items():
            seen = adapt(
                base, method, loss, score, steps=STEPS, rates=RATES, seed=seed, prepare=starting(letters), **settings
            )  # fmt: skip
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    return {
        "a prefix from words below random, every seed": table.below(PREFIX_WORDS, PREFIX),
        "a prompt from the vocabulary below random, every seed": table.below(VOCABULARY, PROMPT),
        "a prompt from words below random, every seed": table.below(PROMPT_WORDS, PROMPT),
        "every one below the base": all(table.below(m, "base") for m in METHODS),
        "lora below every prefix and prompt, every seed": all(
            table.below(LORA, m) for m in METHODS if m != LORA
        ),
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
