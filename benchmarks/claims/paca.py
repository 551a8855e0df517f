"""PaCA with twice LoRA's rank adapts a language model about as well as LoRA, whichever columns it trains.

claim      Woo et al. 2025, arXiv:2503.01905: training randomly chosen columns of the weights reaches LoRA's accuracy at matched
           parameters with less memory and time, and choosing the columns by their norm instead changes little
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear
           layers, 100 steps, the better of two learning rates for each method) and tested on modules it has not seen. LoRA has
           r = 8 and PaCA r = 16, about as many parameters. "A small margin" is a twentieth of what LoRA gains over the base; the
           difference between selections is held to the same. All seeds share the pretrained base; they draw the columns, A and the batches
"""

from __future__ import annotations

from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter

LABELS = {
    "lora r=8": ("lora", {"r": 8}),
    "paca r=16, random": ("paca", {"r": 16}),
    "paca r=16, largest": ("paca", {"r": 16, "selection": "largest"}),
    "paca r=16, smallest": ("paca", {"r": 16, "selection": "smallest"}),
}
LORA, RANDOM, LARGEST, _ = LABELS


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST))

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, (method, settings) in LABELS.items():
            seen = adapt(base, method, loss, score, steps=100, rates=(3e-3, 1e-2), seed=seed, **settings)
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    margin = 0.05 * (table.mean("base") - table.mean(LORA))
    apart = abs(table.mean(RANDOM) - table.mean(LARGEST))
    more = table.parameters[RANDOM] / table.parameters[LORA]
    return {
        f"parameters within a tenth of each other ({more:.2f})": 0.9 < more < 1.1,
        f"paca, random columns: within {margin:.3f} of lora": table.as_good(RANDOM, LORA, margin),
        f"random and largest columns: {apart:.3f} apart, at most {margin:.3f}": apart <= margin,
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
