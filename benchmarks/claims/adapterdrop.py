"""Adapters trained with AdapterDrop lose little when those of the first blocks are left out; ordinary ones lose much.

claim      Rücklé et al. 2021, arXiv:2010.11918: one training with a random number of the first blocks without adapters gives a model that
           can run without them in as many blocks as one likes, at little cost, where adapters trained as usual break
miniature  a tiny Llama of letters (5 blocks), pretrained here on the standard library's docstrings, is adapted to Python sources by
           Pfeiffer adapters and tested on modules it has not seen, with the first 0 to 4 blocks left out. Equal steps and one
           learning rate. "Close" is within a tenth of what ordinary adapters gain over the base. The seeds share the base
"""

from __future__ import annotations

from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter

import adaptome as ad

BLOCKS, STEPS, RATES = 5, 160, (5e-3,)
METHODS = {"ordinary": 0, "adapterdrop": BLOCKS - 1}
DROPS = range(BLOCKS)


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(250, BLOCKS), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        for label, drop in METHODS.items():
            seen = adapt(base, "pfeiffer", loss, score, steps=STEPS, rates=RATES, seed=seed, targets="down", size=16, drop=drop)  # fmt: skip
            for n in DROPS:
                with ad.steer(drop=n):
                    table.add(f"{label}, without the first {n}", score(seen.model), seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    at = {(label, n): table.mean(f"{label}, without the first {n}") for label in METHODS for n in DROPS}
    close = 0.1 * (table.mean("base") - at["ordinary", 0])
    gap = at["adapterdrop", 0] - at["ordinary", 0]
    lost = {label: sum(at[label, n] - at[label, 0] for n in DROPS[1:]) / (BLOCKS - 1) for label in METHODS}
    return {
        "without 1 to 4 blocks: adapterdrop below ordinary, every seed": all(
            table.below(f"adapterdrop, without the first {n}", f"ordinary, without the first {n}") for n in DROPS[1:]
        ),
        f"and loses at most half as much on average ({lost['adapterdrop']:.3f} against {lost['ordinary']:.3f})": 2 * lost["adapterdrop"] <= lost["ordinary"],
        f"with all of them: close to ordinary ({gap:.3f}, at most {close:.3f})": gap <= close,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
