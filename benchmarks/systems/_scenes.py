"""What the demonstrations on drawn scenes share: the small model that they adapt, trained once and kept, and what its pictures show.

The model is the first stage of the recipes, the same for all of them and for every seed, as Stable Diffusion would be: seeds change the subject, its
pictures, the adapters' start and the noises. It is kept in `$XDG_CACHE_HOME/adaptome` (`~/.cache/adaptome`) under a digest of its recipe.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import adaptome as ad
from adaptome.core.version import __version__
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.picture_scores import Asked, get_score
from adaptome.training import load_run, run
from adaptome.training.building import read
from adaptome.training.folder import last_checkpoint

CPU = "training.device=cpu"


def base(name: str) -> Path:
    """The finished first stage of a recipe: trained now, gone on with, or kept from an earlier call."""
    (_, first), _ = stages_of(load_recipe(name, [CPU]))
    told = first.model_copy(update={"title": None, "output": first.output.model_copy(update={"folder": "x"})})
    digest = hashlib.sha256((__version__ + told.to_yaml(full=True)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptome"
    folder = cache / f"scenes-{digest}"
    if not (folder / "metrics.json").is_file():
        begun = last_checkpoint(folder) is not None
        output = first.output.model_copy(update={"folder": str(folder), "overwrite": not begun})
        training = first.training.model_copy(update={"resume": begun})
        result = run(first.model_copy(update={"output": output, "training": training}), callbacks=[])
        print(f"the base, {result.seconds:.0f} s: {shown(result.metrics)}", flush=True)
    return folder


def subject(name: str, seed: int, folder: Path, method: Mapping[str, object] | None = None) -> Recipe:
    """The second stage of a recipe on the kept base, for a seed's subject.

    Args:
        method: in place of the recipe's.
    """
    more = [f"stages.1.{key}.{where}={seed}" for key, where in (("data", "split_seed"), ("training", "seed"), ("task", "draw_seed"))]  # fmt: skip
    kept = base(name)
    _, (_, second) = stages_of(load_recipe(name, [*more, CPU, "stages.1.task.samples=[]"]))
    assert second.start is not None
    update: dict[str, object] = {
        "start": second.start.model_copy(update={"run": str(kept)}),
        "output": second.output.model_copy(update={"folder": str(folder)}),
    }
    made = second.model_copy(update=update)
    if method is None:
        return made
    content = made.model_dump(mode="json", exclude_defaults=True)
    return load_recipe({**content, "methods": [dict(method)]})


def frozen(folder: Path) -> dict[str, float]:
    """The scores of a finished run without its adapters, and those of its training pictures in place of pictures that are made."""
    loaded = load_run(folder)
    splits = read(loaded.recipe, loaded.task)
    rows, train = splits["test"].rows, splits["train"].rows
    ad.activate(loaded.model, [])
    made = loaded.task.predict(loaded.model, None, list(rows["text"]), 64)
    before = loaded.task.judge(splits["test"], made)
    own = [to_rgb(train[i]["image"]) for i, prior in enumerate(train["prior"]) if not prior]
    columns = {name: list(rows[name]) for name in rows.column_names}
    given = get_score("scenes").score(
        [own[i % len(own)] for i in range(len(rows))], Asked(columns["text"], columns)
    )
    return before | {f"given {name}": value for name, value in given.items()}


LORA, FROZEN, GIVEN = "LoRA, r = 1", "frozen model", "the five pictures"


def beside(demo: str, seed: int, folder: Path) -> dict[str, float]:
    """The share of pictures right by row: the recipe, LoRA of rank 1, the frozen model, the given pictures; and what is told of the class."""
    found: dict[str, float] = {}
    told: dict[str, float] = {}
    methods: dict[str, Mapping[str, object] | None] = {
        demo: None,
        LORA: {"name": "lora", "targets": "unet.attention", "r": 1, "alpha": 1},
    }
    for label, method in methods.items():
        metrics = run(subject(demo, seed, folder / label.replace(" ", ""), method), callbacks=[]).metrics
        found[label] = metrics["right"]
        told |= {f"class, {label}": metrics["class_right"], f"leak, {label}": metrics["leak"]}
    before = frozen(folder / demo)
    found |= {FROZEN: before["right"], GIVEN: before["given right"]}
    return found | told | {f"class, {FROZEN}": before["class_right"]}


def shown(metrics: Mapping[str, float], names: Sequence[str] = ()) -> str:
    """Metrics in a line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if not names or name in names)
