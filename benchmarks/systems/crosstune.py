"""The recipe `crosstune-demo` in full: a black box's states of texts and of labels' descriptions, eight examples of each label (Luo et al. 2024, arXiv:2403.12468).

    python benchmarks/systems/crosstune.py [--seeds 3]

Accuracy on all test rows; the seed draws the examples. Beside the recipe stand what needs no network on the same black box's states, pooled by
their mean: the nearest description by cosine (the frozen base, no training), the nearest class mean, and logistic regression, its strength chosen on
the validation rows as the recipe's checkpoint is; and counts of words, which need no model. `real alone` and `augmented` are the two stages of which validation chooses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _demo import Demo, Seen, main
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from adaptome.models.cross_tune import mean
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import run_stages
from adaptome.training.building import prepared

DEMO, NEAREST, MEANS, PROBE, WORDS = (
    "crosstune-demo",
    "nearest description",
    "nearest class mean",
    "linear probe",
    "words counted",
)
REAL, AUGMENTED = "real alone", "augmented"
#: calls to the black box, and the different texts that it was to be asked: of the data, the descriptions, and what the teacher sifted
CALLS, OWED = "calls", "texts and descriptions"


def pooled(asked, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors [n, d]: the means of the states."""
    states = [asked.states(text).float() for text in texts]
    made = torch.stack([mean(one, torch.ones(len(one), dtype=torch.bool)) for one in states])
    return torch.nn.functional.normalize(made, dim=-1).numpy()


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [
        f"task.cache={folder}/asked",
        f"data.split_seed={seed}",
        f"training.seed={seed}",
        "training.device=cpu",
        f"output={folder}/demo",
    ]
    recipe = load_recipe(DEMO, told)
    result = run_stages(recipe, callbacks=[])
    found = {DEMO: result.last.metrics["accuracy"]}
    found |= {
        label: result.stages[name].metrics["accuracy"]
        for label, name in ((REAL, "2-real"), (AUGMENTED, "3-augmented"))
    }
    _, stage = stages_of(recipe)[1]
    task, asked, _splits, data = prepared(stage)
    (train, y), (held, held_y), (test, test_y) = (
        (data[name]["text"], np.array(data[name]["labels"])) for name in ("train", "validation", "test")
    )
    described = [text for some in task.descriptions_of(task.labels).values() for text in some]
    generated = [
        json.loads(line)
        for line in (folder / "demo" / "3-augmented" / "generated.jsonl").open(encoding="utf-8")
    ]
    sifted = {row["text"] for row in generated if row["why"] != "repeated"}
    found |= {CALLS: float(asked.spent), OWED: float(len({*train, *held, *test, *described, *sifted}))}
    x, v, t, e = (pooled(asked, texts) for texts in (train, held, test, described))
    found[NEAREST] = float(((t @ e.T).argmax(1) == test_y).mean())
    means = np.stack([x[y == kind].mean(0) for kind in range(len(task.labels))])
    found[MEANS] = float(
        ((t @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1) == test_y).mean()
    )
    found[PROBE] = chosen(x, y, v, held_y).score(t, test_y)
    counted = TfidfVectorizer(sublinear_tf=True).fit(train)
    found[WORDS] = chosen(counted.transform(train), y, counted.transform(held), held_y).score(
        counted.transform(test), test_y
    )
    return found


def chosen(x, y, held, held_y) -> LogisticRegression:
    """Logistic regression of the strength that is best on validation."""
    fits = [LogisticRegression(C=strength, max_iter=2000).fit(x, y) for strength in (0.1, 1, 10, 100)]
    return max(fits, key=lambda fit: fit.score(held, held_y))


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    return {
        "every text and description was asked once": all(one[CALLS] == one[OWED] for one in seen),
        f"the chosen stage is {REAL} or {AUGMENTED}": all(
            one[DEMO] in (one[REAL], one[AUGMENTED]) for one in seen
        ),
        f"ahead of {PROBE} in the mean": bool(np.mean([o[DEMO] - o[PROBE] for o in seen]) > 0),
    }


if __name__ == "__main__":
    ahead = {NEAREST: 0.02, MEANS: 0.02, WORDS: 0.1}
    demo = Demo(DEMO, "accuracy, 8 examples a label", NEAREST, WORDS, ahead, measure, also)
    main(demo, "python benchmarks/systems/crosstune.py", __doc__)
