"""The folder of a run.

<output.folder>/
  adapter/            what `ad.load` reads (a folder per adapter when there are several)
  recipe.yaml         the recipe as run, defaults written out
  task.json           the task with its labels
  data.json           how many rows there were, and a digest of them, for resuming
  scores.json         the ROC and calibration curves, where the task has probabilities
  examples.json       some rows with their predictions; their pictures are in examples/
  metrics.json        scores, loss curve, counts, time and memory; a run that has it is finished
  samples/            pictures that the model made as training went, where the task has such
  report.html         all of it as one page
  predictions.jsonl   where the recipe asks for them
  merged/             base and adapters as one model, where a later run started from it
  generated.jsonl     texts that `augmentation` had written, and what became of each
  galleries/          what the model made of folders that inputs were ranked against
  checkpoints/        see `training.checkpoint`
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from adaptome.core.errors import TrainingError
from adaptome.core.files import remove_folder
from adaptome.recipe import Recipe
from adaptome.training.checkpoint import checkpoints, last_good

ADAPTER, METRICS, RECIPE, TASK = "adapter", "metrics.json", "recipe.yaml", "task.json"
PREDICTIONS, CHECKPOINTS, MERGED = "predictions.jsonl", "checkpoints", "merged"
STAGES, DATA, GENERATED = "stages.json", "data.json", "generated.jsonl"
EXAMPLES, PICTURES, SCORES, REPORT = "examples.json", "examples", "scores.json", "report.html"
SAMPLES, GALLERIES = "samples", "galleries"


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run that did not finish, which `training.resume=true` goes on from."""
    folder = Path(folder)
    return None if (folder / METRICS).exists() else last_good(folder / CHECKPOINTS)


def last_stage(folder: Path) -> Path:
    """The run itself, or of a recipe with stages the one that stands for it: the chosen one, else the last."""
    if not (folder / STAGES).is_file():
        return folder
    told = json.loads((folder / STAGES).read_text(encoding="utf-8"))
    last: str = told.get("chosen") or told["stages"][-1]["name"]
    return folder / last


def stamp(folder: Path) -> str:
    """A digest of a folder's files, which tells whether they are still the same."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def check_room(recipe: Recipe, folder: Path) -> None:
    """Refuse a folder that holds a run already, unless the recipe says what is to be done with it."""
    done = (folder / METRICS).exists()
    if done and not recipe.output.overwrite and not recipe.training.resume:
        raise TrainingError(
            f"{folder} holds a finished run.\n  Choose another output.folder, or output.overwrite=true to start over."
        )
    stale = checkpoints(folder / CHECKPOINTS)
    if stale and not recipe.output.overwrite and not recipe.training.resume:
        raise TrainingError(
            f"{folder} holds checkpoints of a run that did not finish, up to step {stale[-1][0]}.\n"
            "  Go on with training.resume=true, start over with output.overwrite=true, or choose another output.folder."
        )


def make_room(recipe: Recipe, folder: Path) -> None:
    """Remove an earlier run that is to be overwritten: late, so that a mistake in the recipe does not cost it."""
    if not recipe.output.overwrite or recipe.training.resume:
        return
    for name in (ADAPTER, CHECKPOINTS, MERGED, PICTURES, SAMPLES, GALLERIES):
        if (folder / name).is_dir():
            remove_folder(folder / name)
    for name in (METRICS, RECIPE, TASK, DATA, PREDICTIONS, EXAMPLES, SCORES, REPORT):
        (folder / name).unlink(missing_ok=True)
