"""The demonstrations on docstrings in full: a small real encoder, and the methods of eight papers.

    python benchmarks/systems/docstrings.py [dylora hydra diffora mos randlora triadaptlora loca loldu] [--seeds 3]

Accuracy on test of `dylora-demo` and the others: which module of the standard library a docstring is from. Beside the recipe stand the frozen
encoder with a new head, trained as long, and the most frequent module. They show that a method learns; how it compares with others is
`adaptome compare`, and what its paper claims is in benchmarks/claims.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path

from _demo import Demo, Seen, arguments, carry_out

from adaptome.data import load_splits
from adaptome.recipe import load_recipe
from adaptome.training import run

SYSTEMS = ("dylora", "hydra", "diffora", "mos", "randlora", "triadaptlora", "loca", "loldu")
BASE, MODULE = "frozen encoder", "most frequent module"
#: the frozen encoder's accuracy by seed, which is the same for all
probes: dict[int, float] = {}


def measure(system: str, seed: int, folder: Path) -> Seen:
    """Accuracy by row."""
    demo = f"{system}-demo"
    changes = [f"training.seed={seed}", f"data.split_seed={seed}", "training.device=cpu"]
    found = run(load_recipe(demo, [*changes, f"output={folder}/{demo}"]), callbacks=[])
    if seed not in probes:
        probe = load_recipe(demo, [*changes, "method=linear-probe", "training.learning_rate=0.002", f"output={folder}/probe"])  # fmt: skip
        probes[seed] = run(probe, callbacks=[]).metrics["accuracy"]
    splits = load_splits(**load_recipe(demo, changes).data.model_dump())
    most = Counter(splits["train"].rows["label"]).most_common(1)[0][0]
    truth = splits["test"].rows["label"]
    share = sum(label == most for label in truth) / len(truth)
    return {demo: found.metrics["accuracy"], BASE: probes[seed], MODULE: share}


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("systems", nargs="*", default=SYSTEMS, metavar="|".join(SYSTEMS))
    asked = parser.parse_args()
    if unknown := [name for name in asked.systems if name not in SYSTEMS]:
        parser.error(f"{unknown[0]}: known are {', '.join(SYSTEMS)}")
    codes = []
    for name in asked.systems:
        print(f"{name}-demo", flush=True)
        demo = Demo(f"{name}-demo", "accuracy, docstrings by module", BASE, MODULE, {BASE: 0.01, MODULE: 0.3}, partial(measure, name))  # fmt: skip
        codes.append(
            carry_out(demo, asked.seeds, f"python benchmarks/systems/docstrings.py {name} --seeds 3")
        )
    sys.exit(max(codes))
