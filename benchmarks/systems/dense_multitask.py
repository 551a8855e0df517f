"""The recipes `mtlora-demo` and `polyhistor-demo` in full: four dense tasks on drawn rooms.

    python benchmarks/systems/dense_multitask.py mtlora [--seeds 3]
    python benchmarks/systems/dense_multitask.py polyhistor [--seeds 3]

The figure is the mean over tasks of the gain in percent over the training maps' own prior, which at each pixel answers what is most frequent there (for
directions: their mean), on the test rooms; that prior is so the trivial row, at 0. Beside the recipe stand the frozen encoder under the same
decoders and steps, and one LoRA for all tasks on the same layers, of as many numbers as the recipe's adapters, as near as whole ranks come; single figures of every
row are told too. Exit code 1 unless the recipe is ahead of the frozen encoder by 3, of the prior by 20, and of LoRA in the mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _demo import Demo, Seen, arguments, carry_out

from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.dense_multitask import Views
from adaptome.tasks.dense_scores import FIGURES, counted, delta_m, figures
from adaptome.training import load_run, run
from adaptome.training.building import read

FROZEN, PRIOR, LORA = "frozen encoder", "prior of each pixel", "lora, one for all"
SHARED = "stages.1.model.passes=shared"
#: what has the same numbers in one LoRA as the recipe's adapters
LIKE = {
    "mtlora": '{name: lora, targets: encoder.all-linear, exclude: "*.reduction", r: 13, '
    'train: [encoder.encoder.norms, encoder.embeddings.norm, "*.patch_embeddings", "*.reduction", "*.relative_position_bias"]}',
    "polyhistor": "{name: lora, targets: [encoder.o, encoder.down], r: 5, train: [encoder.norms]}",
}


def measure(system: str) -> Callable[[int, Path], Seen]:
    demo = f"{system}-demo"
    ways = {
        demo: [],
        FROZEN: [SHARED, "stages.1.method=linear-probe"],
        LORA: [SHARED, f"stages.1.method={LIKE[system]}"],
    }

    def measured(seed: int, folder: Path) -> dict[str, float]:
        told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
        shared = [*told, "training.device=cpu", f"output={folder}/demo"]
        found: dict[str, dict[str, float]] = {}
        for number, (label, changes) in enumerate(ways.items()):
            (_, first), (_, second) = stages_of(load_recipe(demo, [*shared, *changes]))
            if number == 0:
                run(first, callbacks=[])
            out = folder / str(number)
            second = second.model_copy(
                update={"output": second.output.model_copy(update={"folder": str(out)})}
            )
            found[label] = run(second, callbacks=[]).metrics
        task = load_run(folder / "0").task
        prior = prior_figures(task, read(second, task))
        less = {t: FIGURES[task.options.kind(t)][1] for t in task.options.tasks}
        keys = {t: f"{FIGURES[task.options.kind(t)][0]}_{t}" for t in less}
        gains = {
            label: delta_m({t: m[keys[t]] for t in less}, {t: prior[keys[t]] for t in less}, less)
            for label, m in found.items()
        }
        return (
            gains
            | {PRIOR: 0.0}
            | {
                f"{keys[t]}, {label}": m[keys[t]]
                for label, m in {**found, PRIOR: prior}.items()
                for t in less
            }
        )

    return measured


def prior_figures(task: Any, splits: Any) -> dict[str, float]:
    """The figures of answering at each pixel what is most frequent there in training."""
    own = task.options
    rows, asked = (list(Views(splits[name], own, False)) for name in ("train", "test"))
    made: dict[str, float] = {}
    for name in own.tasks:
        kind, known = own.kind(name), np.stack([row[name] for row in rows])
        truth = torch.from_numpy(np.stack([row[name] for row in asked]))
        if kind == "classes":
            shares = np.stack([(known == k).mean(0) for k in range(own.outputs(name))])
        elif kind == "normals":
            shares = np.moveaxis(known.mean(0), -1, 0)
        else:
            shares = np.log(np.clip(known.mean(0), 1e-6, 1 - 1e-6) / np.clip(1 - known.mean(0), 1e-6, 1))[
                None
            ]
        maps = torch.from_numpy(shares).float().expand(len(asked), *shares.shape)
        made |= {f"{k}_{name}": v for k, v in figures(kind, counted(kind, maps, truth).numpy()).items()}
    return made


def ordered(demo: str) -> Callable[[Sequence[Seen]], dict[str, bool]]:
    def also(seen: Sequence[Seen]) -> dict[str, bool]:
        own, lora = (np.mean([one[label] for one in seen]) for label in (demo, LORA))
        return {"ahead of one LoRA of as many numbers, in the mean": bool(own > lora)}

    return also


if __name__ == "__main__":
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("system", choices=sorted(LIKE))
    given = parser.parse_args()
    name = f"{given.system}-demo"
    demo = Demo(
        name,
        "mean gain over the prior of each pixel, %",
        FROZEN,
        PRIOR,
        {FROZEN: 3, PRIOR: 20},
        measure(given.system),
        ordered(name),
    )
    sys.exit(carry_out(demo, given.seeds, f"python benchmarks/systems/dense_multitask.py {given.system}"))
