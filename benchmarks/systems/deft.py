"""The recipe `deft-demo` in full: docstrings told apart by module with few active units (Runwal et al. 2024, arXiv:2402.01911).

    python benchmarks/systems/deft.py [--seeds 3]

Accuracy on test, and the density of the MLPs' activations beyond 0.001 (of GELU, which is seldom exactly 0). Beside the recipe stand the same LoRA
without the price, the frozen base with a new head, and the most frequent module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _demo import Demo, Seen, main

from adaptome.data import load_splits
from adaptome.recipe import load_recipe
from adaptome.training import run

DEMO, BASE, MODULE, PLAIN = "deft-demo", "frozen base", "most frequent module", "without the price"
DENSITY = "density beyond 0.001"


def measure(seed: int, folder: Path) -> Seen:
    changes = [f"training.seed={seed}", f"data.split_seed={seed}", "training.device=cpu"]
    rows = {DEMO: [], PLAIN: ["objective.1.weight=0"], BASE: ["method=linear-probe", "objective=model"]}
    found = {name: run(load_recipe(DEMO, [*changes, *own, f"output={folder}/{name}"]), callbacks=[]).metrics for name, own in rows.items()}  # fmt: skip
    values = {name: metrics["accuracy"] for name, metrics in found.items()}
    recipe = load_recipe(DEMO, changes)
    splits = load_splits(**recipe.data.model_dump())
    most = Counter(splits["train"].rows["label"]).most_common(1)[0][0]
    truth = splits["test"].rows["label"]
    values[MODULE] = sum(label == most for label in truth) / len(truth)
    values |= {f"{DENSITY}: {name}": found[name]["density_above"] for name in (DEMO, PLAIN)}
    return values | {f"{DENSITY}: {BASE}": found[DEMO]["density_above_before"]}


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    own, plain = (f"{DENSITY}: {name}" for name in (DEMO, PLAIN))
    return {
        "density at most 0.7 of plain LoRA's in every seed": all(one[own] <= 0.7 * one[plain] for one in seen),
        "accuracy within 0.02 of plain LoRA's on average": sum(one[PLAIN] - one[DEMO] for one in seen) <= 0.02 * len(seen),
    }  # fmt: skip


if __name__ == "__main__":
    demo = Demo(
        DEMO, "accuracy, docstrings by module", BASE, MODULE, {BASE: 0.03, MODULE: 0.3}, measure, also
    )
    main(demo, "python benchmarks/systems/deft.py", __doc__)
