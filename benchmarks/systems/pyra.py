"""The recipe `pyra-demo` in full: ground at night told by a transformer that merges half of its tokens in every block, 5 of 65 being left.

    python benchmarks/systems/pyra.py [--seeds 3]

Accuracy over eight kinds of ground. Beside the recipe, at the same tokens: LoRA that was trained without merging and meets it in use (ToMe without
training), the encoder as it came from the day under a probe likewise, and LoRA that was trained beside ToMe's merging. Also LoRA without merging, which costs
more, and the pixels. Exit code 1 unless the recipe is ahead of ToMe without training, of the frozen encoder and of the pixels by the margins below in every seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _demo import Demo, main
from sklearn.linear_model import LogisticRegression

import adaptome as ad
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.training import load_run, run
from adaptome.training.building import read

RATE = (32, 16, 8, 4)
LORA = "{name: lora, targets: qkv, r: 8, alpha: 8}"
DEMO, FROZEN, UNTRAINED = "pyra-demo", "frozen encoder, ToMe", "LoRA, ToMe without training"
BESIDE, UNMERGED, PIXELS = "LoRA trained beside ToMe", "LoRA, nothing merged", "pixels"


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"{where}data.split_seed={seed}" for where in ("", "stages.1.")]
    told += [f"training.seed={seed}", "training.device=cpu"]

    def stages(name: str, methods: str | None = None) -> list[Recipe]:
        more = [] if methods is None else [f"stages.1.methods=[{methods}]"]
        return [stage for _, stage in stages_of(load_recipe(DEMO, [*told, *more, f"output={folder}/{name}"]))]

    first, second = stages("demo")
    run(first, callbacks=[])
    found = {DEMO: run(second, callbacks=[]).metrics["accuracy"]}

    def beside(name: str, methods: str) -> dict[str, float]:
        other = stages(name, methods)[1].model_copy(update={"start": second.start})
        return run(other, callbacks=[]).metrics

    beside("frozen", "linear-probe")
    found[FROZEN] = merged(folder / "frozen" / "2-merged")
    unmerged = beside("lora", LORA)
    found[UNTRAINED] = merged(folder / "lora" / "2-merged")
    tome = f"{LORA}, {{name: pyra, adapter: merging, r: {list(RATE)}, modulate: false}}"
    found |= {BESIDE: beside("tome", tome)["accuracy"], UNMERGED: unmerged["accuracy"]}
    loaded = load_run(folder / "demo" / "2-merged")
    splits = read(second, loaded.task)
    (x, y), (asked, right) = (pictures(splits[name]) for name in ("train", "test"))
    plain = [one[..., 0].reshape(len(one), -1) / 255 for one in (x, asked)]
    found[PIXELS] = float(LogisticRegression(max_iter=500, C=0.1).fit(plain[0], y).score(plain[1], right))
    return found


def merged(folder: Path) -> float:
    """Accuracy of a run that knew no merging, its tokens now merged as ToMe does."""
    loaded = load_run(folder)
    names = list(ad.adapters(loaded.model))
    ad.attach(loaded.model, "pyra", "merging", r=RATE, modulate=False)
    ad.activate(loaded.model, [*names, "merging"])
    images, right = pictures(read(loaded.recipe, loaded.task)["test"])
    said = loaded.task.predict(loaded.model, loaded.processor, list(images), 100)
    return float(np.mean([one["label"] == label for one, label in zip(said, right, strict=True)]))


def pictures(split) -> tuple[np.ndarray, list[str]]:
    rows = split.rows.with_format("numpy")
    return np.stack([row["image"] for row in rows]), list(split.rows["label"])


if __name__ == "__main__":
    ahead = {UNTRAINED: 0.05, FROZEN: 0.05, PIXELS: 0.1}
    main(Demo(DEMO, "accuracy", FROZEN, PIXELS, ahead, measure), "python benchmarks/systems/pyra.py", __doc__)
