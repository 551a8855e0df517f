"""The recipe `lae-demo` in full: 20 signs learned five at a time (Gao et al. 2023, arXiv:2303.10070).

    python benchmarks/systems/lae.py [--seeds 3]

The base has seen other signs, in black on paper; these are in colour. Accuracy among all labels after the last task, no task told. Beside the recipe
stand the same adapter trained task after task with one cross-entropy over the labels seen, the frozen encoder under a head that is trained as the
recipe's, and the nearest class mean of the pixels, which is given all classes at once. Also told: accuracy on the first task's signs by the online and by
the offline adapter alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _demo import Demo, Seen, main

from adaptome.data import load_splits
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.training import load_run, run, run_continual

DEMO, FIRST = "lae-demo", 5
ONLINE, OFFLINE = "first task, online", "first task, offline"


def varied(recipe: Recipe, folder: Path, **changes: object) -> Recipe:
    """The stream's recipe with other sections, in a folder of its own."""
    content = recipe.model_dump(mode="json", exclude_defaults=True) | changes
    return load_recipe({**content, "output": str(folder)})


def first_task(folder: Path, experts: str, images: np.ndarray, labels: Sequence[str]) -> float:
    """Accuracy among all labels on the signs of the first task."""
    loaded = load_run(folder, [f"continual.strategy.experts={experts}"])
    own = [i for i, label in enumerate(labels) if label in (loaded.task.labels or [])[:FIRST]]
    told = loaded.task.predict(loaded.model, loaded.processor, [images[i] for i in own])
    return float(np.mean([one["label"] == labels[i] for i, one in zip(own, told, strict=True)]))


def nearest_mean(train: np.ndarray, labels: Sequence[str], test: np.ndarray, truth: Sequence[str]) -> float:
    names = sorted(set(labels))
    flat = train.reshape(len(train), -1).astype(float)
    means = np.stack([flat[np.array(labels) == name].mean(0) for name in names])
    distance = ((test.reshape(len(test), 1, -1).astype(float) - means) ** 2).sum(-1)
    return float(np.mean(np.array(names)[distance.argmin(1)] == np.array(truth)))


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data={{name: 'made:glyphs', split_seed: {seed}}}"]
    recipe = load_recipe(DEMO, [*told, f"training.seed={seed}", "training.device=cpu", f"output={folder}/demo"])  # fmt: skip
    (_, base), (_, stream) = stages_of(recipe)
    run(base, callbacks=[])
    sequential = {"stream": stream.continual.stream.model_dump(exclude_defaults=True), "strategy": "sequential"}  # type: ignore[union-attr]  # fmt: skip
    rows = {
        DEMO: stream,
        "sequential": varied(stream, folder / "sequential", continual=sequential),
        "frozen encoder": varied(stream, folder / "frozen", methods=["linear-probe"]),
    }
    found = {name: run_continual(one, callbacks=[]).metrics["class_whole"] for name, one in rows.items()}
    splits = load_splits("made:glyphs", split_seed=seed)
    parts = {}
    for name in ("train", "test"):
        names = splits[name].rows.features["label"].names
        parts[name] = (
            np.asarray(splits[name].rows.with_format("numpy")["image"]),
            [names[n] for n in splits[name].rows["label"]],
        )
    found["nearest mean of pixels"] = nearest_mean(*parts["train"], *parts["test"])
    place = Path(stream.output.folder)
    found[ONLINE], found[OFFLINE] = (
        first_task(place, experts, *parts["test"]) for experts in ("online", "offline")
    )
    return found


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    return {
        "the offline adapter keeps the first task at least as well as the online one": all(
            one[OFFLINE] >= one[ONLINE] for one in seen
        )
    }


if __name__ == "__main__":
    ahead = {"sequential": 0.1, "frozen encoder": 0.02, "nearest mean of pixels": 0.1}
    demo = Demo(
        DEMO, "accuracy after the last task", "frozen encoder", "nearest mean of pixels", ahead, measure, also
    )
    main(demo, "python benchmarks/systems/lae.py", __doc__)
