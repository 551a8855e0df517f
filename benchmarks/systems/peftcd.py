"""The recipe `peftcd-demo` in full: houses that were built or pulled down between two drawn pictures from above.

    python benchmarks/systems/peftcd.py [--seeds 3]

IoU of the class of change over all pixels of the test pairs. Beside the recipe stand the frozen encoder under the same decoder and steps, and what
needs no model: the pictures' difference, each normalised by its own mean and spread or not, from the threshold on that is best on the training
pairs. `alike pairs` is the share of pixels marked in test pairs in which nothing was built or pulled down (lower is better). Exit code 1 unless the
recipe is ahead of both by the margins below in every seed, and marks fewer pixels of alike pairs than the frozen encoder does, in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _demo import Demo, Seen, main

from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.pixel_scores import binary_metrics, confusion
from adaptome.training import load_run, run
from adaptome.training.building import read

DEMO, FROZEN = "peftcd-demo", "frozen encoder"
PIXELS, ALIKE = "difference of pixels", "alike pairs, "
WAYS: dict[str, list[str]] = {DEMO: [], FROZEN: ["stages.1.method=linear-probe"]}


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    shared = [*told, "training.device=cpu", f"output={folder}/demo"]
    found: dict[str, float] = {}
    splits: Any = None
    for number, (label, changes) in enumerate(WAYS.items()):
        (_, first), (_, second) = stages_of(load_recipe(DEMO, [*shared, *changes]))
        if number == 0:
            run(first, callbacks=[])
        out = folder / str(number)
        second = second.model_copy(update={"output": second.output.model_copy(update={"folder": str(out)})})
        found[label] = run(second, callbacks=[]).metrics["iou"]
        loaded = load_run(out)
        splits = splits or read(second, loaded.task)
        found[ALIKE + label] = marked(loaded, splits["test"])
    found[PIXELS] = difference(columns(splits["train"]), columns(splits["test"]))
    return found


def columns(split: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures before and after [n, h, w, 3] and what changed [n, h, w]."""
    rows = split.rows.with_format("numpy")
    before, after, mask = (np.asarray(rows[name]) for name in ("before", "after", "mask"))
    return before, after, mask >= 128


def marked(loaded: Any, split: Any) -> float:
    """The share of pixels that a run marks in pairs in which nothing changed."""
    before, after, mask = columns(split)
    alike = ~mask.any((1, 2))
    pairs = list(zip(before[alike], after[alike], strict=True))
    answers = loaded.task.predict(loaded.model, loaded.processor, pairs)
    return float(np.mean([answer["changed"] for answer in answers]))


def difference(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> float:
    """IoU of the better of two differences, from the threshold that is best in training."""
    kinds = [[distance(before, after, own) for before, after, _ in (train, test)] for own in (False, True)]
    best = []
    for known, asked in kinds:
        levels = np.quantile(known, np.linspace(0.5, 0.995, 60))
        level = max(levels, key=lambda at, known=known: iou(known > at, train[2]))
        best.append((iou(known > level, train[2]), iou(asked > level, test[2])))
    return max(best)[1]


def distance(before: np.ndarray, after: np.ndarray, own: bool) -> np.ndarray:
    """Mean difference of the channels [n, h, w]; `own`: each picture by its own mean and spread."""
    shares = [one / 255.0 for one in (before, after)]
    if own:
        shares = [(s - s.mean((1, 2), keepdims=True)) / s.std((1, 2), keepdims=True) for s in shares]
    return np.abs(shares[0] - shares[1]).mean(-1)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    counts = confusion(torch.from_numpy(found), torch.from_numpy(truth.astype(np.uint8)), 2)
    return binary_metrics(counts.sum(0).numpy())["iou"]


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    """Pseudo-changes fall when the encoder is adapted."""
    frozen, adapted = (np.mean([one[ALIKE + label] for one in seen]) for label in (FROZEN, DEMO))
    return {"marks fewer pixels of alike pairs than the frozen encoder, in the mean": bool(adapted < frozen)}


if __name__ == "__main__":
    demo = Demo(DEMO, "IoU of change", FROZEN, PIXELS, {FROZEN: 0.03, PIXELS: 0.1}, measure, also)
    main(demo, "python benchmarks/systems/peftcd.py", __doc__)
