"""The recipe `storydalle-demo` in full: drawn stories continued from a picture and captions, what each frame shows read back by rule.

    python benchmarks/systems/storydalle.py [--seeds 3]

Share of frames whose figure (only the source frame shows it), ground (only the first caption names it) and place (each frame's own caption tells
it) are right. Beside the recipe stand the text-to-image model that it began from; the source frame shown again; prompts and story token without
a look at the source; and the looks without a story token. Exit code 1 unless the recipe is ahead of the model, the frame shown again and
both parts alone by 0.2 in every seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _demo import Demo, main, on_seed
from PIL import Image
from torch import nn

from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.base import register_task
from adaptome.tasks.picture_scores import Asked, get_score
from adaptome.tasks.story_continuation import StoryContinuation, frames_of
from adaptome.training import evaluate, load_run, run
from adaptome.training.building import read

DEMO, FROZEN, AGAIN = "storydalle-demo", "text-to-image alone", "the source frame again"
BLIND, FORGETFUL = "without the source", "without the story token"
PARTS = ("figure", "ground", "place")


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = on_seed(seed, folder)
    (_, first), (_, second) = stages_of(load_recipe(DEMO, told))
    run(first, callbacks=[])
    result = run(second, callbacks=[])
    found = {DEMO: result.metrics["right"], FROZEN: evaluate(folder / "demo" / "1-base")["right"]}
    for label, task in ((BLIND, "story-without-source"), (FORGETFUL, "story-without-token")):
        section = second.task.model_copy(update={"name": task})
        output = second.output.model_copy(update={"folder": f"{folder}/{task}"})
        found[label] = run(
            second.model_copy(update={"task": section, "output": output}), callbacks=[]
        ).metrics["right"]
    loaded = load_run(folder / "demo" / "2-story")
    rows = read(second, loaded.task)["test"].rows
    parts = [part for several in rows["parts"] for part in several]
    again = [
        Image.fromarray(np.asarray(frames_of(strip)[0]))
        for strip, several in zip(rows["frames"], rows["parts"], strict=True)
        for _ in several
    ]
    found[AGAIN] = get_score("pixel-stories").score(again, Asked([""] * len(parts), {"parts": parts}))[
        "right"
    ]
    return found | {f"{DEMO}: {part}": result.metrics[part] for part in PARTS}


@register_task("story-without-source")
class WithoutSource(StoryContinuation):
    """The looks at the source left out."""

    def load_model(self, model: Any, processor: Any = None) -> nn.Module:
        found: Any = super().load_model(model, processor)
        found.sources = nn.ModuleDict()
        return found

    def head_patterns(self, model: nn.Module) -> list[str]:
        return [name for name in super().head_patterns(model) if name != "sources"]


@register_task("story-without-token")
class WithoutToken(StoryContinuation):
    """The story token left out."""

    def load_model(self, model: Any, processor: Any = None) -> nn.Module:
        found: Any = super().load_model(model, processor)
        found.story = None
        return found


if __name__ == "__main__":
    ahead = {FROZEN: 0.2, AGAIN: 0.2, BLIND: 0.2, FORGETFUL: 0.2}
    main(
        Demo(DEMO, "share of frames right", FROZEN, AGAIN, ahead, measure),
        "python benchmarks/systems/storydalle.py",
        __doc__,
    )
