"""The recipe `missing-modality-demo` in full: drawn rooms segmented by colour, depth and heat, when one or two of the three are missing.

    python benchmarks/systems/missing_modality.py [--seeds 3]

mIoU over all pixels of the test rooms, the mean of the six sets that lack a sensor. Beside the recipe stand the frozen network of its first stage, which gets
zeros for what is missing, and what needs no model: at each pixel the class that is likeliest there in the training rooms. Each set is also told alone, and
the set of all three, on which the recipe is the network as it was. Exit code 1 unless the recipe is ahead of the network by 0.05 and of the places by 0.1 in
every seed; in every set of every seed no more than 0.01 behind the network; the gain is the greater, in the mean over seeds, the worse the network was (rank
correlation below -0.5); and the full set is the network's in every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _demo import Demo, Seen, main
from scipy.stats import spearmanr

from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.pixel_scores import confusion, mean_iou
from adaptome.training import evaluate, load_run, run
from adaptome.training.building import read

DEMO, FROZEN, PLACES = "missing-modality-demo", "frozen network", "likeliest class of the place"
FULL, CLASSES = "depth+rgb+thermal", 5


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"training.seed={seed}"]
    recipe = load_recipe(DEMO, [*told, "training.device=cpu", f"output={folder}/demo"])
    (_, first), (_, second) = stages_of(recipe)
    run(first, callbacks=[])
    found = {DEMO: run(second, callbacks=[]).metrics}
    found[FROZEN] = evaluate(first.output.folder, overrides=["task.test_on=null"])
    each = {
        label: {s.removeprefix("miou@"): v for s, v in one.items() if s.startswith("miou@")}
        for label, one in found.items()
    }
    rows = {label: float(np.mean([v for s, v in one.items() if s != FULL])) for label, one in each.items()}
    splits = read(second, load_run(second.output.folder).task)
    rows[PLACES] = by_place(*(np.asarray(splits[name].rows.with_format("numpy")["mask"]) for name in ("train", "test")))  # fmt: skip
    return rows | {f"{s}: {label}": v for s in each[DEMO] for label, v in ((n, each[n][s]) for n in each)}


def by_place(train: np.ndarray, test: np.ndarray) -> float:
    """mIoU of the class that is likeliest at each pixel."""
    counts = np.stack([(train == number).sum(0) for number in range(CLASSES)])
    told = torch.from_numpy(counts.argmax(0))[None].expand(len(test), -1, -1)
    return mean_iou(confusion(told, torch.from_numpy(test), CLASSES).sum(0).numpy())["miou"]


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    """The pattern of the paper's tables."""
    sets = [s.partition(":")[0] for s in seen[0] if s.endswith(f": {DEMO}")]
    pairs = {s: [(one[f"{s}: {FROZEN}"], one[f"{s}: {DEMO}"]) for one in seen] for s in sets}
    lacking = [s for s in sets if s != FULL]
    before = [float(np.mean([a for a, _ in pairs[s]])) for s in lacking]
    gains = [float(np.mean([b - a for a, b in pairs[s]])) for s in lacking]
    return {
        "no set falls by more than 0.01 in any seed": all(b >= a - 0.01 for s in lacking for a, b in pairs[s]),
        "the worse the network was on a set, the more is gained (rank correlation below -0.5)": bool(spearmanr(before, gains).statistic < -0.5),
        "all sensors: the network as it was, in every seed": all(abs(a - b) < 1e-6 for a, b in pairs[FULL]),
    }  # fmt: skip


if __name__ == "__main__":
    demo = Demo(DEMO, "mIoU, mean of the sets that lack a sensor", FROZEN, PLACES, {FROZEN: 0.05, PLACES: 0.1}, measure, also)  # fmt: skip
    main(demo, "python benchmarks/systems/missing_modality.py", __doc__)
