"""The recipe `explora-demo` in full: an encoder that knows ground by day is taken to a thermal camera at night without labels, then probed with few.

    python benchmarks/systems/explora.py [--seeds 3]

Accuracy over eight kinds of ground of a linear probe with twenty labelled pictures each. Beside the recipe stand the same probe on the encoder as it
came from the day, on one that was trained further in the same steps with LoRA alone at about as many numbers, and on the pixels; and how many of
the nearest neighbours among the test pictures are of one kind, before and after, which no label takes part in. Exit code 1 unless the recipe is ahead of
the frozen encoder and of the pixels by the margins below in every seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _demo import Demo, main
from sklearn.linear_model import LogisticRegression

from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.training import run
from adaptome.training.building import read

DEMO, FROZEN, LORA, PIXELS = "explora-demo", "frozen encoder", "LoRA alone", "pixels"
#: LoRA on q and v of every block, norms held, at about the recipe's count
ALONE = "{name: lora, targets: [encoder.q, encoder.v], r: %d, alpha: %d}"


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"{where}data.split_seed={seed}" for where in ("", "stages.1.", "stages.2.")]
    told += [f"training.seed={seed}", f"stages.1.task.seed={seed}", "training.device=cpu"]

    def stages(name: str, *more: str) -> list[Recipe]:
        return [stage for _, stage in stages_of(load_recipe(DEMO, [*told, *more, f"output={folder}/{name}"]))]

    first, second, third = stages("demo")
    run(first, callbacks=[])
    extended = run(second, callbacks=[])
    found = {DEMO: run(third, callbacks=[]).metrics["accuracy"]}
    start = third.start
    assert start is not None
    frozen = third.model_copy(
        update={
            "start": start.model_copy(update={"run": first.output.folder}),
            "output": third.output.model_copy(update={"folder": f"{folder}/frozen"}),
        }
    )
    found[FROZEN] = run(frozen, callbacks=[]).metrics["accuracy"]
    encoder = extended.trainable_parameters - heads(folder)
    r = max(1, round(encoder / (4 * 4 * 64)))  # two maps of 64 by 64 in each of four blocks
    _, other, last = stages("lora", f"stages.1.method={ALONE % (r, r)}")
    other = other.model_copy(update={"start": second.start})
    run(other, callbacks=[])
    found[LORA] = run(last, callbacks=[]).metrics["accuracy"]
    task = get_task(third.task.name, **third.task.settings)
    splits = read(third, task)
    (x, y), (asked, right) = (pictures(splits[name]) for name in ("train", "test"))
    found[PIXELS] = float(LogisticRegression(max_iter=500, C=0.1).fit(x, y).score(asked, right))
    return found | {
        "neighbours, after": extended.metrics["knn"],
        "neighbours, before": extended.metrics["knn_before"],
    }


def heads(folder: Path) -> int:
    """Numbers of the objective's own head, which is thrown away."""
    from safetensors.torch import load_file

    kept = load_file(folder / "demo" / "2-extended" / "adapter" / "adapter.safetensors")
    return sum(
        value.numel() for name, value in kept.items() if "objective_parts" in name or "decoder" in name
    )


def pictures(split) -> tuple[np.ndarray, list[str]]:
    rows = split.rows.with_format("numpy")
    return np.stack([row["image"][..., 0].ravel() / 255 for row in rows]), list(split.rows["label"])


if __name__ == "__main__":
    demo = Demo(DEMO, "accuracy", FROZEN, PIXELS, {FROZEN: 0.03, PIXELS: 0.1}, measure)
    main(demo, "python benchmarks/systems/explora.py", __doc__)
