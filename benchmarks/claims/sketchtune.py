"""SketchTune learns a task whose update has a high rank better than LoRA on the same 4-bit base, and more tables learn it better.

claim      Zhang et al. 2024, arXiv:2410.06364: training the shared values of a compressed model makes no assumption of a low rank, and reaches
           full fine-tuning where adapters of its size on a compressed base stay behind; more tables of values a row are better
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is sketched to 4 bits with 1, 2 or 4 tables a row,
           and tuned to say another alphabet: the letters that it reads stay, those that it is to predict are permuted (all linear layers but
           the head, 150 steps, the better of two learning rates), tested on docstrings it was not tuned on. LoRA, on the 4-bit base with one
           table, has the rank that brings its count nearest. All end in one path of 4 bits a weight, LoRA beside it
"""

from __future__ import annotations

import copy

import torch
from _harness import Loss, Measure, Score, Table, adapt, main, tune
from _letters import BATCH, LENGTH, SIZE, language_model, prose
from torch import Tensor, nn

import adaptome as ad

TABLES = (1, 2, 4)
STEPS = 150


def permuted(text: Tensor, swap: Tensor) -> Loss:
    """The loss of predicting the permuted next letters of the text."""

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        first = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
        pieces = text[first + torch.arange(LENGTH)]
        return model(input_ids=pieces, labels=swap[pieces]).loss  # type: ignore[no-any-return]

    return loss


def scored(loss: Loss) -> Score:
    def score(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(99)
        with torch.no_grad():
            return sum(float(loss(model.eval(), generator)) for _ in range(12)) / 12

    return score


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained and sketched once."""
    full, text = language_model(300), prose()
    swap = torch.randperm(SIZE, generator=torch.Generator().manual_seed(3))
    cut = len(text) * 4 // 5
    loss, score = permuted(text[:cut], swap), scored(permuted(text[cut:], swap))
    first = torch.randint(cut - LENGTH, (64, 1), generator=torch.Generator().manual_seed(7))
    batches = [{"input_ids": rows} for rows in text[first + torch.arange(LENGTH)].split(32)]
    bases = {}
    for tables in TABLES:
        bases[tables] = copy.deepcopy(full)
        ad.quantize(bases[tables], "sketch", bits=4, tables=tables, batches=batches)

    def measure(seed: int, table: Table) -> None:
        table.add("4 bits, not tuned", score(bases[1]))
        how = {"steps": STEPS, "rates": (3e-3, 1e-2), "seed": seed}
        for tables in TABLES:
            seen = adapt(bases[tables], "sketchtune", loss, score, **how)
            table.add(f"sketchtune, {tables} tables", seen.value, seen.parameters)
            seen = adapt(bases[1], "lora", loss, score, r=round(8.47 * tables), alpha=16.0, **how)
            table.add(f"lora r={round(8.47 * tables)}", seen.value, seen.parameters)
        seen = tune(full, loss, score, steps=STEPS, rates=(3e-3,), seed=seed)
        table.add("full fine-tuning", seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for tables in TABLES:
        own, other = f"sketchtune, {tables} tables", f"lora r={round(8.47 * tables)}"
        parts[f"{own}: below {other}"] = table.below(own, other)
    for a, b in ((2, 1), (4, 2)):
        parts[f"{a} tables below {b} on average"] = table.mean(f"sketchtune, {a} tables") < table.mean(f"sketchtune, {b} tables")  # fmt: skip
    return parts


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
