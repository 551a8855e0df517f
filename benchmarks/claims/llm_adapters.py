"""LoRA on attention and MLP is at least as good as a series adapter after the MLP, and both beat a prefix of 10.

claim      Hu et al. 2023, arXiv:2304.01933: on arithmetic, LoRA on attention and MLP comes out above a series adapter, and the prefix
           far below both; a series adapter is best after the MLP, not after the attention
miniature  a tiny Llama (hidden 48, 2 blocks), pretrained here until it adds and subtracts numbers of three digits to base 5 without fault,
           digit by digit and without carry, is adapted to an operator it has not met, a + 2 b, with 200 steps and the better of two
           learning rates for each method. The score is the loss over the answer's digits (ln 5 = 1.609 for guessing) on pairs of
           numbers held out of both trainings. LoRA (r = 4) and the series adapters (b = 24) have equal parameters; the prefix has
           the paper's 10 positions, which makes it smaller, as it is there
"""

from __future__ import annotations

import torch
from _harness import Loss, Measure, Score, Table, adapt, descend, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad

BATCH, DIGITS, BASE = 64, 3, 5
SIGNS = {"+": BASE, "-": BASE + 1, "#": BASE + 2}
EQUALS = BASE + 3
BOTH = ["q", "k", "v", "up", "down"]
METHODS = {
    "lora, attention + mlp": ("lora", {"r": 4, "targets": BOTH}),
    "series, after attention": ("series", {"size": 24, "targets": "o"}),
    "series, after mlp": ("series", {"size": 24, "targets": "down"}),
    "prefix, 10": ("prefix-tuning", {"p": 10, "targets": "attention-blocks"}),
}
LORA, AFTER_ATTENTION, AFTER_MLP, PREFIX = METHODS


def sums(pairs: Tensor, sign: str) -> Tensor:
    """Pairs of numbers [n, 2] and their result as tokens [n, 11]: digits, sign, digits, equals, the result's digits."""
    a, b = (torch.stack([number // BASE**place % BASE for place in range(DIGITS)], 1) for number in pairs.T)
    answer = {"+": a + b, "-": a - b, "#": a + 2 * b}[sign] % BASE
    asked, equals = (torch.full_like(a[:, :1], token) for token in (SIGNS[sign], EQUALS))
    return torch.cat([a, asked, b, equals, answer], 1)


def split() -> tuple[Tensor, Tensor]:
    """All pairs, four fifths to train on and a fifth to test on."""
    pairs = torch.cartesian_prod(*[torch.arange(BASE**DIGITS)] * 2)
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    return pairs[:12500], pairs[12500:]


def digits_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Nats over a digit of the answer."""
    scores = model(input_ids=tokens).logits[:, -DIGITS - 1 : -1]
    return F.cross_entropy(scores.flatten(0, 1), tokens[:, -DIGITS:].flatten())


def training(pairs: Tensor, signs: str) -> Loss:
    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        sign = signs[int(torch.randint(len(signs), (), generator=generator))]
        return digits_loss(model, sums(pairs[torch.randint(len(pairs), (BATCH,), generator=generator)], sign))

    return loss


def held_out(pairs: Tensor) -> Score:
    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(digits_loss(model.eval(), sums(pairs, "#")))

    return score


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    train, test = split()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=EQUALS + 1, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.1, use_cache=False)  # fmt: skip
    base = LlamaForCausalLM(config)
    descend(base, training(train, "+-"), 1200, 3e-3, seed=0, adapted=False)
    score, there = held_out(test), ad.list_methods()

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, (method, settings) in METHODS.items():
            if method in there:
                seen = adapt(base, method, training(train, "#"), score, steps=200, rates=(3e-3, 2e-2), seed=seed, **settings)  # fmt: skip
                table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    parts = {
        "lora and series have equal parameters": table.parameters[LORA] == table.parameters[AFTER_MLP],
        "lora on attention and mlp at least as good as series after mlp": table.as_good(LORA, AFTER_MLP, 0.0),
        "series after mlp at least as good as after attention": table.as_good(
            AFTER_MLP, AFTER_ATTENTION, 0.0
        ),
    }
    if PREFIX in table.values:
        parts["series after mlp below the prefix, every seed"] = table.below(AFTER_MLP, PREFIX)
    return parts


if __name__ == "__main__":
    main(__doc__, "nats a digit", measurement(), judge)
