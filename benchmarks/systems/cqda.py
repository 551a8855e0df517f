"""The recipe `cqda-demo` in full: queries over a made-up town, a fifth of its edges missing, answered with calibrated scores (Arakelyan et al. 2023, arXiv:2301.12313).

    python benchmarks/systems/cqda.py [--seeds 3]

MRR over all 14 structures of queries, on those answers of the test part that need a missing edge. Beside the recipe stand the frozen link predictor in
the same search, and the same search over a predictor that knows no more than how often a relation leads to an entity. Exit code 1 unless the recipe is
ahead of the frozen predictor by 0.05, also on the queries with negation by 0.2, and of the popular entities by 0.3, in every seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from _demo import Demo, Seen, main

import adaptome as ad
from adaptome.data import load_splits
from adaptome.recipe import load_recipe
from adaptome.training import load_run, run_stages

sys.path.insert(0, str(Path(__file__).parents[1] / "claims"))
from _town import Popular, scored

DEMO, BASE, POPULAR = "cqda-demo", "scores as they are", "popular entities"
NEGATION = "with negation, "


def measure(seed: int, folder: Path) -> Seen:
    told = ["data.split_seed", "training.seed", "stages.1.task.query_seed"]
    recipe = load_recipe(
        DEMO, [*(f"{key}={seed}" for key in told), f"output={folder}", "training.device=cpu"]
    )
    found = run_stages(recipe, []).last.metrics
    loaded = load_run(folder / "2-adapter")
    splits = load_splits(**loaded.recipe.data.model_dump(), prefer=loaded.task.prefer)
    rows = loaded.task.prepare(splits, loaded.processor)["test"]
    ad.activate(loaded.model, [])
    frozen = scored(loaded, rows)
    ad.detach(loaded.model)
    loaded.model.predictor = Popular(loaded.task, splits["train"].rows)
    each = {DEMO: found, BASE: frozen, POPULAR: scored(loaded, rows)}
    overall = {label: metrics["mrr"] for label, metrics in each.items()}
    return overall | {NEGATION + label: metrics["mrr_negative"] for label, metrics in each.items()}


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    return {
        f"with negation ahead of {BASE} by 0.2 in every seed": all(
            one[NEGATION + DEMO] >= one[NEGATION + BASE] + 0.2 for one in seen
        )
    }


if __name__ == "__main__":
    demo = Demo(DEMO, "MRR", BASE, POPULAR, {BASE: 0.05, POPULAR: 0.3}, measure, also)
    main(demo, "python benchmarks/systems/cqda.py", __doc__)
