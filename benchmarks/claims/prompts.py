"""Prompts and prefixes that start from words adapt a language model better than random ones, and LoRA better than a prefix of 10.

claim      Li and Liang 2021, arXiv:2101.00190, section 7.4: a prefix that starts from the activations of real words beats one that starts at
           random where there is little training; Lester et al. 2021, arXiv:2104.08691, section 3.2: so do prompts that start from
           the vocabulary's embeddings, in models that are not very large; Hu et al. 2023, arXiv:2304.01933: at equal steps LoRA on attention
           and MLPs beats prefix tuning with 10 keys
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (60 steps, the better
           of two learning rates for each method) and tested on modules it has not seen. The words are a line of code. Random starts
           are N(0, 0.02^2); all parameters of a pair of starts are equal. All seeds share the pretrained base; they draw starts and batches
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad

WORDS = "\n        if self.x is None:\n            return"
P = 10
#: method, settings, and how many letters of the line it starts from (0: as the settings say)
LABELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "lora r=8": ("lora", {"r": 8, "targets": "all-linear"}, 0),
    "prefix p=10, random": ("prefix-tuning", {"p": P, "targets": "attention-blocks"}, 0),
    "prefix p=10, words": ("prefix-tuning", {"p": P, "targets": "attention-blocks"}, P),
    "prompt p=20, random": ("prompt-tuning", {"p": 2 * P, "init": "normal", "targets": "backbones"}, 0),
    "prompt p=20, vocabulary": ("prompt-tuning", {"p": 2 * P, "targets": "backbones"}, 0),
    "prompt p=20, words": ("prompt-tuning", {"p": 2 * P, "targets": "backbones"}, 2 * P),
}
LORA, PREFIX, PREFIX_WORDS, PROMPT, VOCABULARY, PROMPT_WORDS = LABELS


def starting(letters: int) -> Callable[[nn.Module], None] | None:
    """What sets a prompt to the last letters of the line."""
    ids = list(WORDS.encode())[-letters:]
    return (lambda model: void(ad.prompt_from(model, ids))) if letters else None


def void(_: object) -> None:
    """Nothing."""


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST))

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, (method, settings, letters) in LABELS.items():
            seen = adapt(
                base, method, loss, score, steps=60, rates=(1e-2, 1e-1), seed=seed, prepare=starting(letters), **settings
            )  # fmt: skip
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    return {
        "prefix: words below random, every seed": table.below(PREFIX_WORDS, PREFIX),
        "prompt: vocabulary below random, every seed": table.below(VOCABULARY, PROMPT),
        "prompt: words below random, every seed": table.below(PROMPT_WORDS, PROMPT),
        "lora below every prefix and prompt, every seed": all(
            table.below(LORA, label) for label in LABELS if label != LORA
        ),
        "every one below the base": all(table.below(label, "base") for label in LABELS),
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
