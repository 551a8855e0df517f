"""The recipe `petalface-demo` in full: small pictures of people whom nothing was trained on, looked for among large ones and as many distractors.

    python benchmarks/systems/petalface.py [--seeds 3]

Rank-1: the share of 800 probes whose likest picture of 400 is of the same person. Beside the recipe stand the frozen recogniser, which knows large pictures
alone, and the pixels themselves, each picture at a mean of 0 and a spread of 1. Two rows more are of large pictures of others, each person's first one and the
rest: what the recogniser could before, and what of it is kept. Exit code 1 unless the recipe is ahead of the frozen recogniser by 0.03, and of the pixels by
0.1, in every seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _demo import Demo, main

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.face_protocols import protocol_of, scored
from adaptome.training import load_run, run
from adaptome.training.building import read

DEMO, FROZEN, PIXELS = "petalface-demo", "frozen recogniser", "pixels"


def rank_one(features: np.ndarray, split: Any) -> float:
    """Of embeddings [n, D] of a split's rows."""
    return scored(protocol_of(split), features, None, "unit", [0.01], [1], [])["rank_1"]


def pictures(split: Any) -> np.ndarray:
    return np.asarray(split.rows.with_format("numpy")["image"])


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    told += ["training.device=cpu", f"output={folder}/demo"]
    (_, first), (_, second) = stages_of(load_recipe(DEMO, told))
    run(first, callbacks=[])
    found = {DEMO: run(second, callbacks=[]).metrics["rank_1"]}
    loaded = load_run(folder / "demo" / "2-small")
    small, large = read(second, loaded.task)["test"], read(first, loaded.task)["validation"]

    def embedded(split: Any) -> np.ndarray:
        features, _ = loaded.task.embedded(loaded.model, loaded.processor, list(pictures(split)), 256)
        return features

    kept = rank_one(embedded(large), large)
    ad.activate(loaded.model, [])
    found[FROZEN] = rank_one(embedded(small), small)
    plain = pictures(small).astype(float)
    plain = (plain - plain.mean((1, 2), keepdims=True)) / plain.std((1, 2), keepdims=True)
    found[PIXELS] = rank_one(plain.reshape(len(plain), -1), small)
    return found | {f"large: {DEMO}": kept, f"large: {FROZEN}": rank_one(embedded(large), large)}


if __name__ == "__main__":
    demo = Demo(DEMO, "rank-1 of small probes", FROZEN, PIXELS, {FROZEN: 0.03, PIXELS: 0.1}, measure)
    main(demo, "python benchmarks/systems/petalface.py", __doc__)
