"""VeRA comes near LoRA with about a tenth of its parameters.

claim      Kopiczko et al. 2023, arXiv:2310.11454: trained vectors between frozen random factors reach LoRA's quality with about ten
           times fewer trained numbers
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear
           layers, 100 steps, the best of three learning rates; VeRA's paper takes ten times LoRA's) and tested on modules it has
           not seen. LoRA has r = 8, VeRA r = 24, which is 10 to 12 times fewer numbers a layer. "Near" is within a fifth of what LoRA
           gains over the base. LoRA at r = 1 is the smallest LoRA there is, and still larger than VeRA
"""

from __future__ import annotations

from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter

LABELS = {"lora r=8": ("lora", {"r": 8}), "lora r=1": ("lora", {"r": 1}), "vera r=24": ("vera", {"r": 24})}
LORA, SMALLEST, VERA = LABELS


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, (method, settings) in LABELS.items():
            seen = adapt(base, method, loss, score, steps=100, rates=(5e-3, 2e-2, 5e-2), seed=seed, **settings)  # fmt: skip
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    gain, lost = table.mean("base") - table.mean(LORA), table.mean(VERA) - table.mean(LORA)
    times = table.parameters[LORA] / table.parameters[VERA]
    return {
        f"{times:.1f} times fewer parameters, at least 9": times >= 9,
        f"vera: within a fifth of lora's gain ({lost:.3f}, at most {gain / 5:.3f})": lost <= gain / 5,
        "vera has fewer parameters than lora r = 1": table.parameters[VERA] < table.parameters[SMALLEST],
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
