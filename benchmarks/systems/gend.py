"""The recipe `gend-demo` in full: forged faces told apart, the forgeries of the test being none that training had.

    python benchmarks/systems/gend.py [--seeds 3]

AUROC over the test's videos, mean of two data sets with a forgery each. Beside the recipe stand what needs no adapter: the frozen encoder, whose
features are scored by the nearer of the two classes' mean; a linear probe on them; and six numbers of the pixels, the colours' means and spreads, under
logistic regression. Exit code 1 unless the recipe is ahead of the frozen encoder by 0.05 and of the pixels by 0.1 in every seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _demo import Demo, main

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.detection_scores import table
from adaptome.tasks.inference import chunks, evaluating
from adaptome.training import load_run, run
from adaptome.training.building import read

DEMO = "gend-demo"


def columns(split) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
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
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    recipe = load_recipe(DEMO, [*told, "training.device=cpu", f"output={folder}/demo"])
    (_, first), (_, second) = stages_of(recipe)
    run(first, callbacks=[])
    found = {DEMO: run(second, callbacks=[]).metrics["auroc"]}
    probe = load_recipe(
        {
            **second.model_dump(mode="json", exclude_defaults=True),
            "methods": ["linear-probe"],
            "output": f"{folder}/probe",
        }
    )
    found["linear probe"] = run(probe, callbacks=[]).metrics["auroc"]
    loaded = load_run(folder / "demo" / "2-detector")
    splits = read(second, loaded.task)
    train, test = columns(splits["train"]), columns(splits["test"])

    def auroc(scores: np.ndarray) -> float:
        return table(scores, *test[1:])["auroc"]

    old, new = features(loaded, train[0]), features(loaded, test[0])
    real, fake = (old[train[1] == kind].mean(0) for kind in (0, 1))
    found["frozen encoder"] = auroc(new @ (fake - real))
    told_by = [
        np.concatenate([p.mean((1, 2)), p.std((1, 2))], 1) for p in (train[0] / 255.0, test[0] / 255.0)
    ]
    scaler = StandardScaler().fit(told_by[0])
    fitted = LogisticRegression().fit(scaler.transform(told_by[0]), train[1])
    found["pixels"] = auroc(fitted.predict_proba(scaler.transform(told_by[1]))[:, 1])
    return found


if __name__ == "__main__":
    ahead = {"frozen encoder": 0.05, "pixels": 0.1}
    demo = Demo(DEMO, "AUROC over videos", "frozen encoder", "pixels", ahead, measure)
    main(demo, "python benchmarks/systems/gend.py", __doc__)
