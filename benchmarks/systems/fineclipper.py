"""The recipe `fineclipper-demo` in full: expressions of drawn faces in clips of four frames, of which every two differ in nothing but the frames' order.

    python benchmarks/systems/fineclipper.py [--seeds 3]

UAR over six kinds of clips. Beside the recipe stand the frozen CLIP with the same texts and streams; logistic regression on its vectors of the frames,
their mean over each clip, which no order changes; what the observer's words say by themselves; and, to tell how hard the clips are, logistic regression
on the difference of the last frame's pixels from the first's, of which nothing is asserted. Exit code 1 unless the recipe is ahead of the frozen CLIP's
two uses and of the words by 0.1, in every seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from _demo import Demo, main
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adaptome.data.faces.expressions import WORDS
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.clips import ClipCollator
from adaptome.tasks.inference import chunks, evaluating
from adaptome.tasks.metrics import recall_metrics
from adaptome.training import run
from adaptome.training.building import prepared, spec

DEMO, FROZEN, PROBE = "fineclipper-demo", "frozen CLIP, zero-shot", "frozen CLIP, logistic regression"
WORD, PIXELS = "the words alone", "pixels, last less first frame"


def seen(task: Any, model: Any, processor: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Classes and vectors of the frames, of the CLIP without anything learned from clips."""
    collate, told, vectors = ClipCollator(processor, task.options.streams), [], []
    with evaluating(model):
        for part in chunks(range(len(rows)), 32):
            batch = collate([rows[i] for i in part])
            batch.pop("labels")
            outputs = model(**batch)
            told.append(outputs["logits"].argmax(-1))
            vectors.append(outputs["stream_vectors"][:, 0])
    return torch.cat(told).numpy(), torch.cat(vectors).numpy()


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    recipe = load_recipe(DEMO, [*told, "training.device=cpu", f"output={folder}/demo"])
    (_, first), (_, second) = stages_of(recipe)
    run(first, callbacks=[])
    result = run(second, callbacks=[])
    task, processor, splits, data = prepared(second)
    bare: Any = spec(second).model_copy()
    task.options.zero_shot = list(task.labels)  # the texts alone, without context
    model = task.load_model(bare, processor)
    (_, known), (zero, new) = (seen(task, model, processor, data[name]) for name in ("train", "test"))
    labels, truth = (np.array(data[name].labels) for name in ("train", "test"))

    def uar(predicted: np.ndarray) -> float:
        return recall_metrics(predicted, truth)["uar"]

    moved = [change(splits[name]) for name in ("train", "test")]
    return {
        DEMO: result.metrics["uar"],
        FROZEN: uar(zero),
        PROBE: uar(fitted(known, labels, new)),
        WORD: uar(by_words(splits["test"], task.labels, np.random.default_rng(seed))),
        PIXELS: uar(fitted(moved[0], labels, moved[1])),
    }


def fitted(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Classes by logistic regression on standardised columns."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return np.asarray(model.fit(known, labels).predict(asked))


def by_words(split: Any, labels: list[str], rng: np.random.Generator) -> np.ndarray:
    """The kind that the observer's words are of; drawn where there are none."""
    kinds = {words: labels.index(kind) for kind, words in WORDS.items()}
    rows = zip(split.rows["description"], split.rows["missing"], strict=True)
    return np.array([int(rng.integers(len(labels))) if "description" in lacks else kinds[words] for words, lacks in rows])  # fmt: skip


def change(split: Any) -> np.ndarray:
    """The last frame's brightness less the first one's, pixel by pixel."""
    pictures = np.asarray(split.rows.with_format("numpy")["video"][:], float).mean(-1)
    return (pictures[:, -1] - pictures[:, 0]).reshape(len(pictures), -1)


if __name__ == "__main__":
    ahead = {FROZEN: 0.1, PROBE: 0.1, WORD: 0.1}
    demo = Demo(DEMO, "UAR", FROZEN, WORD, ahead, measure)
    main(demo, "python benchmarks/systems/fineclipper.py", __doc__)
