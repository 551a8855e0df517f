"""CREMA's demonstration in full: a model that learns from video alone, to which sound and then depth are added by small adapters of their own.

`crema-demo` pre-trains on the video of drawn scenes, whose questions ask for what is seen, heard or how far it is; stage two adds the sound, stage three the depth,
and each trains its own adapter, queries and projections alone. Beside it: the model before them, which has read all questions but seen the videos alone; the
same with a LoRA on the video's own stream, trained for as long; each question's most frequent answer.

    python benchmarks/systems/crema.py [--seeds 3]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _demo import Demo, main

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import load_run, run
from adaptome.training.building import read

DEMO, FROZEN, VIDEO, PRIOR = (
    "crema-demo",
    "frozen, video alone",
    "LoRA on video alone",
    "most frequent answer",
)
TARGETS = r"re:base\.qformer\.encoder\.layer\.\d+\.attention\.attention\.(query|value)"
WITHOUT = "without depth again"


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [
        f"data.split_seed={seed}",
        f"training.seed={seed}",
        "training.device=cpu",
        f"output={folder}/demo",
    ]
    recipe = load_recipe(DEMO, told)
    stages = [stage for _, stage in stages_of(recipe)]
    results = [run(stage, callbacks=[]) for stage in stages]
    video = {
        "name": "lora",
        "adapter": "rgb",
        "targets": TARGETS,
        "r": 16,
        "alpha": 16,
        "train": ["streams.rgb"],
    }
    content = stages[1].model_dump(mode="json", exclude_defaults=True)
    content["model"]["modalities"], content["methods"] = {"rgb": {}}, [video]
    content["training"]["epochs"] = sum(stage.training.epochs for stage in stages[1:])
    content["output"] = str(folder / "video")
    alone = run(load_recipe(content), callbacks=[])
    last, second = results[-1].metrics, results[1].metrics
    found = {
        DEMO: last["accuracy"],
        FROZEN: results[0].metrics["accuracy"],
        VIDEO: alone.metrics["accuracy"],
        PRIOR: prior(read(stages[-1], load_run(folder / "demo").task)),
    }
    for kind in ("look", "listen", "distance"):
        for label, one in ((DEMO, last), (FROZEN, results[0].metrics), ("with sound", second)):
            found[f"{label}: {kind}"] = one[f"accuracy of {kind}"]
    found |= {f"{DEMO} @ {key.partition('@')[2]}": value for key, value in last.items() if key.startswith("accuracy@")}  # fmt: skip
    found["second stage, sound"] = second["accuracy"]
    return found | {WITHOUT: last["accuracy@rgb+audio"]} | sizes(folder)


def prior(splits: Any) -> float:
    """Accuracy of each question's most frequent answer in training."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for row in splits["train"].rows.select_columns(["question", "answer"]):
        known[row["question"]][row["answer"]] += 1
    asked = splits["test"].rows.select_columns(["question", "answer"])
    return float(np.mean([known[r["question"]].most_common(1)[0][0] == r["answer"] for r in asked]))


def sizes(folder: Path) -> dict[str, float]:
    """Numbers that a modality trains on the Q-Former, over those of a Q-Former of its own."""
    model: Any = load_run(folder / "demo").model
    one = ad.adapters(model)["depth"]
    own = sum(p.numel() for adapter in one.adapters.values() for p in adapter.parameters())
    base = sum(p.numel() for name, p in model.base.qformer.named_parameters() if "adaptome" not in name)
    return {"share of a Q-Former": own / base}


def also(seen: Sequence[Mapping[str, float]]) -> dict[str, bool]:
    return {
        "sound answers what is heard, by 0.2 over video alone": all(one["with sound: listen"] >= one[f"{FROZEN}: listen"] + 0.2 for one in seen),
        "depth answers how far things are, by 0.2 over video alone": all(one[f"{DEMO}: distance"] >= one[f"{FROZEN}: distance"] + 0.2 for one in seen),
        "what is seen is lost by no more than 0.1": all(one[f"{DEMO}: look"] >= one[f"{FROZEN}: look"] - 0.1 for one in seen),
        "without depth, the model is the one before it": all(abs(one[WITHOUT] - one["second stage, sound"]) < 1e-9 for one in seen),
        "an adapter has less than a tenth of a Q-Former": all(one["share of a Q-Former"] < 0.1 for one in seen),
    }  # fmt: skip


if __name__ == "__main__":
    margins = {FROZEN: 0.1, VIDEO: 0.1, PRIOR: 0.3}
    main(
        Demo(DEMO, "accuracy", FROZEN, PRIOR, margins, measure, also),
        "python benchmarks/systems/crema.py",
        __doc__,
    )
