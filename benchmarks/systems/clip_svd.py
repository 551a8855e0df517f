"""The recipe `clip-svd-demo` in full: 24 classes of badly printed scenes, told by a small CLIP from two pictures each.

    python benchmarks/systems/clip_svd.py [--seeds 3]

Accuracy on the test pictures. Beside the recipe stand the CLIP as it was trained on captioned scenes (zero-shot, by the same prompts), logistic
regression on its frozen picture features from the same shots, and logistic regression on the pixels of these. `half` and `new` are the same stage with
half of the classes alone: accuracies on them and on the half that training did not have, each among its own, with zero-shot's beside. Exit code 1
unless the recipe is ahead of zero-shot by 0.1, of the features by 0.02 and of the pixels by 0.05 in every seed, and on average
ahead of zero-shot on the half that it trained on without falling behind it on the other by more than 0.05.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from _demo import Demo, main
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.inference import chunks, evaluating
from adaptome.training import load_run, run
from adaptome.training.building import read

DEMO, ZERO, FEATURES, PIXELS = "clip-svd-demo", "zero-shot", "frozen features", "pixels"


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    told += ["training.device=cpu", f"output={folder}/demo"]
    (_, first), (_, second) = stages_of(load_recipe(DEMO, told))
    run(first, callbacks=[])
    result = run(second, callbacks=[])
    loaded = load_run(folder / "demo" / "2-shots")
    splits = read(second, loaded.task)
    train, test = (columns(splits[name]) for name in ("train", "test"))
    found = {DEMO: result.metrics["accuracy"], ZERO: result.metrics["accuracy_before"]}
    found[FEATURES] = fitted(features(loaded, train[0]), train[1], features(loaded, test[0]), test[1])
    found[PIXELS] = fitted(flat(train[0]), train[1], flat(test[0]), test[1])
    halves = second.model_dump(mode="json", exclude_defaults=True)
    halves["task"] = {**halves["task"], "protocol": "base-to-new"}
    halves["output"] = {"folder": f"{folder}/halves"}
    half = run(load_recipe(halves), callbacks=[]).metrics
    names = {"half": "base", "half, zero-shot": "base_before", "new": "new", "new, zero-shot": "new_before"}
    return found | {label: half[key] for label, key in names.items()}


def also(seen) -> dict[str, bool]:
    """New classes stay known while the half that trains is learned."""
    mean = {label: sum(one[label] for one in seen) / len(seen) for label in seen[0]}
    return {
        "half of the classes: ahead of zero-shot by 0.05 on average": mean["half"] >= mean["half, zero-shot"] + 0.05,
        "the other half: not behind zero-shot by more than 0.05 on average": mean["new"] >= mean["new, zero-shot"] - 0.05,
    }  # fmt: skip


def columns(split) -> tuple[np.ndarray, list[str]]:
    """Pictures and labels."""
    return np.asarray(split.rows.with_format("numpy")["image"]), list(split.rows["label"])


def features(loaded, pictures: np.ndarray) -> np.ndarray:
    """Of the picture encoder without its adapters."""
    ad.activate(loaded.model, [])
    with evaluating(loaded.model):
        parts = [
            loaded.model.image_features(loaded.processor.images([to_rgb(one) for one in part]))
            for part in chunks(list(pictures), 128)
        ]
    return torch.cat(parts).numpy()


def flat(pictures: np.ndarray) -> np.ndarray:
    """The pixels of each, in shares of white."""
    return pictures.reshape(len(pictures), -1) / 255.0


def fitted(known: np.ndarray, labels: list[str], asked: np.ndarray, truth: list[str]) -> float:
    """Accuracy of logistic regression on standardised columns."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(known, labels)
    return float(model.score(asked, truth))


if __name__ == "__main__":
    demo = Demo(DEMO, "accuracy", ZERO, PIXELS, {ZERO: 0.1, FEATURES: 0.02, PIXELS: 0.05}, measure, also)
    main(demo, "python benchmarks/systems/clip_svd.py", __doc__)
