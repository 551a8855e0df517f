"""The recipe `gend-demo` in full: forged faces told apart on three data sets of other people, two of them forged in ways that training did not have.

    python benchmarks/systems/gend.py [--seeds 3]

AUROC over videos, the mean of the three. Beside the recipe stand what needs no adapter: logistic regression on the frozen encoder's features, and their
nearness to the two classes' means; and logistic regression on six numbers of the pixels, the colours' means and spreads. Each data set is also told
alone, for recipe and frozen features. Exit code 1 unless the recipe is ahead of both uses of the frozen encoder by 0.02, and of the pixels by 0.1, in every seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _demo import Demo, main
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.detection_scores import table
from adaptome.tasks.inference import chunks, evaluating
from adaptome.training import load_run, run
from adaptome.training.building import read

#: pictures, labels, and the numbers of videos and data sets, with their names
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]
DEMO, FROZEN, NEARER, PIXELS = "gend-demo", "frozen encoder", "frozen encoder, nearer mean", "pixels"


def columns(split: Any) -> Split:
    """Pictures, labels, and the numbers of videos and data sets, with their names."""
    rows = split.rows.with_format("numpy")
    labels = np.array([label == "fake" for label in split.rows["label"]], int)
    names, sets = np.unique(split.rows["dataset"], return_inverse=True)
    videos = np.unique(split.rows["video"], return_inverse=True)[1]
    return np.asarray(rows["image"]), labels, videos, sets, [str(name) for name in names]


def features(loaded, pictures: np.ndarray) -> np.ndarray:
    """Of the encoder without its adapters."""

    def parts() -> Iterator[torch.Tensor]:
        for part in chunks(list(pictures), 256):
            pixels = loaded.processor(part, return_tensors="pt")["pixel_values"]
            yield torch.nn.functional.normalize(loaded.model.features(pixels), dim=-1)

    ad.activate(loaded.model, [])
    with evaluating(loaded.model):
        return torch.cat(list(parts())).numpy()


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    recipe = load_recipe(DEMO, [*told, "training.device=cpu", f"output={folder}/demo"])
    (_, first), (_, second) = stages_of(recipe)
    run(first, callbacks=[])
    result = run(second, callbacks=[])
    loaded = load_run(folder / "demo" / "2-detector")
    splits = read(second, loaded.task)
    train, test = (columns(splits[name]) for name in ("train", "test"))
    known, new = (features(loaded, split[0]) for split in (train, test))
    real, fake = (known[train[1] == kind].mean(0) for kind in (0, 1))
    ways = {FROZEN: fitted(known, train[1]), NEARER: lambda asked: asked @ (fake - real)}
    plain = fitted(numbers(train[0]), train[1])
    found = {DEMO: result.metrics["auroc"]}
    scored = {label: table(way(new), *test[1:]) for label, way in ways.items()}
    found |= {label: one["auroc"] for label, one in scored.items()}
    found[PIXELS] = table(plain(numbers(test[0])), *test[1:])["auroc"]
    return found | {
        f"{name}: {label}": one[f"auroc@{name}"]
        for name in test[-1]
        for label, one in ({DEMO: result.metrics} | scored).items()
    }


def numbers(pictures: np.ndarray) -> np.ndarray:
    """The colours' means and spreads, [n, 6]."""
    shares = pictures / 255.0
    return np.concatenate([shares.mean((1, 2)), shares.std((1, 2))], 1)


def fitted(known: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities of being fake, by logistic regression on standardised columns."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(known, labels)
    return lambda asked: model.predict_proba(asked)[:, 1]


if __name__ == "__main__":
    demo = Demo(DEMO, "AUROC over videos", FROZEN, PIXELS, {FROZEN: 0.02, NEARER: 0.02, PIXELS: 0.1}, measure)
    main(demo, "python benchmarks/systems/gend.py", __doc__)
