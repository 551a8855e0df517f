"""The recipe `divcontrol-demo` in full: pictures made by the conditions of others that it has not seen, and the conditions taken from them again.

    python benchmarks/systems/divcontrol.py [--seeds 3]

Structural similarity of condition given and condition taken again, the mean over four kinds. Beside the recipe stand the diffusion transformer
without control, a picture of the data at random, and one dense ControlNet trained alike, whose every weight learns; and a kind that no run was
trained on, drawn lines, by its own instruction, by a far kind's, and by no control. Exit code 1 unless the recipe is ahead of the uncontrolled
model and of the random picture by 0.2 in every seed, and of the uncontrolled model on the new kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _demo import Demo, main, on_seed
from PIL import Image

import adaptome as ad
from adaptome.data.conditions import get_condition
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.picture_scores.control import ControlScore
from adaptome.training import load_run, run
from adaptome.training.building import read

DEMO, FROZEN, OTHER, DENSE = "divcontrol-demo", "without control", "a random picture", "dense ControlNet"
LINES = {"name": "lineart", "sigma": 0.7}
NEW, FAR, NONE = "lines: its own instruction", "lines: the blocks' instruction", "lines: without control"


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = on_seed(seed, folder)
    (_, first), (_, second) = stages_of(load_recipe(DEMO, told))
    run(first, callbacks=[])
    result = run(second, callbacks=[])
    dense = load_recipe(DEMO, [*told, "method={name: linear-probe, train: [control.blocks]}"])
    own = stages_of(dense)[1][1]
    output = own.output.model_copy(update={"folder": f"{folder}/dense"})
    found = {
        DEMO: result.metrics["ssim"],
        DENSE: run(own.model_copy(update={"output": output}), callbacks=[]).metrics["ssim"],
    }

    loaded = load_run(folder / "demo" / "2-control")
    task, split = loaded.task, read(second, loaded.task)["test"]
    by, rng = task.by(split.rows), np.random.default_rng(seed)
    pictures = [to_rgb(picture) for picture in split.rows["image"]]
    line = get_condition(LINES)
    lined = [(text, line(to_rgb(picture)), line) for (text, _, _), picture in zip(by, pictures, strict=True)]
    far = get_condition("palette").instruction
    found[NEW] = scored(loaded, lined)
    found[FAR] = scored(loaded, lined, far)
    ad.activate(loaded.model, [])
    found[FROZEN], found[NONE] = scored(loaded, by), scored(loaded, lined)
    shuffled = [pictures[i] for i in (np.arange(len(by)) + rng.integers(1, len(by))) % len(by)]
    found[OTHER] = ControlScore().score(shuffled, by, [])["ssim"]
    return found


def scored(loaded, by, words: str | None = None) -> float:
    """The similarity, of pictures that a run's model makes by these conditions."""
    inputs = [
        {"text": text, "condition": condition, "instruction": words or annotator.instruction}
        for text, condition, annotator in by
    ]
    made: list[Image.Image] = [one["image"] for one in loaded.task.predict(loaded.model, None, inputs)]
    return ControlScore().score(made, by, [])["ssim"]


if __name__ == "__main__":

    def also(seen):
        return {
            "lines, which it was not trained on, ahead of no control in every seed": all(
                one[NEW] > one[NONE] for one in seen
            )
        }

    demo = Demo(
        DEMO, "similarity of conditions (SSIM)", FROZEN, OTHER, {FROZEN: 0.2, OTHER: 0.2}, measure, also
    )
    main(demo, "python benchmarks/systems/divcontrol.py", __doc__)
