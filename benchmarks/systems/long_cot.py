"""The recipe `long-cot-demo` in full: a small language model learns to think in steps (Li et al. 2025, arXiv:2502.07374).

    python benchmarks/systems/long_cot.py [--seeds 3]

Accuracy on 200 held-out questions of five to seven steps. Beside the recipe (LoRA on traces) stand the base that it starts from, the most
frequent answer, the answers alone without a thought (LoRA on the same rows, all steps deleted), and full fine-tuning on the traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _demo import Demo, Seen, main

from adaptome.data import load_splits
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.training import run

DEMO, FROZEN, COMMON, SHORT, FULL = (
    "long-cot-demo", "frozen base", "most frequent answer", "answers alone", "full fine-tuning",
)  # fmt: skip


def varied(recipe: Recipe, folder: Path, **update: object) -> Recipe:
    """The last stage's recipe with other settings, in a folder of its own."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    return load_recipe({**content, **update, "output": str(folder)})


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"training.seed={seed}", "training.device=cpu", f"output={folder}/demo", f"stages.1.data.split_seed={seed}"]  # fmt: skip
    (_, base), (_, traces) = stages_of(load_recipe(DEMO, told))
    run(base, callbacks=[])
    metrics = run(traces, callbacks=[]).metrics
    short = {**traces.task.model_dump(), "perturb": {"how": "delete", "share": 1.0}, "measure_before": False}
    training = {**traces.training.model_dump(exclude_defaults=True), "learning_rate": 2.0e-3}
    whole = {"methods": [{"name": "linear-probe", "train": ["model"]}], "training": training}
    rows = load_splits("made:chains", split_seed=seed)["test"].rows["answer"]
    return {
        DEMO: metrics["accuracy"],
        FROZEN: metrics["accuracy_before"],
        COMMON: Counter(rows).most_common(1)[0][1] / len(rows),
        SHORT: run(varied(traces, folder / "short", task=short), callbacks=[]).metrics["accuracy"],
        FULL: run(varied(traces, folder / "full", **whole), callbacks=[]).metrics["accuracy"],
    }


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    gap = sum(one[FULL] - one[DEMO] for one in seen) / len(seen)
    return {f"LoRA at most 0.03 behind full fine-tuning on average ({gap:+.3f})": gap <= 0.03}


if __name__ == "__main__":
    ahead = {FROZEN: 0.3, COMMON: 0.3, SHORT: 0.3}
    demo = Demo(DEMO, "accuracy", FROZEN, COMMON, ahead, measure, also)
    main(demo, "python benchmarks/systems/long_cot.py", __doc__)
