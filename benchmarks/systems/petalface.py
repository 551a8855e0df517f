"""The recipe `petalface-demo` in full: small pictures of people whom nothing was trained on, looked for among large ones and as many distractors.

    python benchmarks/systems/petalface.py [--seeds 3]

Rank-1: the share of 800 probes whose likest picture of 400 is of the same person. Beside the recipe stand the frozen recogniser, which knows large pictures
alone, and the pixels themselves, each picture at a mean of 0 and a spread of 1. Three rows tell of what the two branches are for: one LoRA of as many numbers,
the two branches blind to quality, and the mean of both kinds of probes, small and large, for the three of them and the base. Exit code 1 unless the recipe is
ahead of the frozen recogniser by 0.05, and of the pixels by 0.2, in every seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _demo import Demo, main

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.face_protocols import protocol_of, scored
from adaptome.training import evaluate, load_run, run
from adaptome.training.building import read

DEMO, FROZEN, PIXELS, ONE, BLIND = "petalface-demo", "frozen recogniser", "pixels", "one LoRA", "blind to quality"
#: the same stage with something else in its place
OTHERS = {
    ONE: ["stages.1.method={name: lora, targets: encoder.qkv, r: 16, alpha: 16}"],
    BLIND: ["stages.1.task.quality_scale=[0, 0.5]"],
}


def rank_one(features: np.ndarray, split) -> float:
    found: float = scored(protocol_of(split), features, None, "unit", [0.01], [1], [])["rank_1"]
    return found


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    told += ["training.device=cpu", f"output={folder}/demo"]
    (_, first), (_, second) = stages_of(load_recipe(DEMO, told))
    run(first, callbacks=[])
    found = {DEMO: run(second, callbacks=[]).metrics["rank_1"]}
    loaded = load_run(folder / "demo" / "2-small")
    test = read(second, loaded.task)["test"]
    pictures = np.asarray(test.rows.with_format("numpy")["image"])
    ad.activate(loaded.model, [])
    found[FROZEN] = rank_one(loaded.task.embedded(loaded.model, loaded.processor, list(pictures), 256)[0], test)
    plain = pictures.astype(float)
    plain = (plain - plain.mean((1, 2), keepdims=True)) / plain.std((1, 2), keepdims=True)
    found[PIXELS] = rank_one(plain.reshape(len(plain), -1), test)
    for label, change in OTHERS.items():
        other = stages_of(load_recipe(DEMO, [*told, *change]))[1][1]
        place = {"folder": f"{folder}/{label.replace(' ', '-')}", "overwrite": False}
        other = other.model_copy(update={"output": other.output.model_copy(update=place)})
        found[label] = run(other, callbacks=[]).metrics["rank_1"]
    return found


if __name__ == "__main__":
    demo = Demo(DEMO, "rank-1 of small probes", FROZEN, PIXELS, {FROZEN: 0.05, PIXELS: 0.2}, measure)
    main(demo, "python benchmarks/systems/petalface.py", __doc__)
