"""One method in a process of its own, so that its peak memory is its own; and a prediction in a new one.

    python -m adaptome.quickstart.worker train FOLDER METHOD          fills FOLDER/METHOD/
    python -m adaptome.quickstart.worker predict FOLDER/METHOD SENTENCE

Every line on the standard output is a JSON object: {"progress": [what, done, total]}, at the end {"result": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save

import adaptome as ad
from adaptome.core.errors import AdaptomeError
from adaptome.core.files import write_atomic
from adaptome.data.stdlib_docstrings import DocstringTask
from adaptome.quickstart.model import Batches, confusion, load_base, logits_of, recipe_of, scores
from adaptome.quickstart.settings import ENCODER, PROBE, Settings
from adaptome.quickstart.training import Progress, train_adapter, train_probe
from adaptome.recipe import Recipe
from adaptome.tasks import Task
from adaptome.tasks.pooling import MeanPooledClassifier
from adaptome.training.memory import process_peak


def train(folder: Path, method: str, progress: Progress) -> dict[str, Any]:
    """Trains, saves and scores one method: its entry of metrics.json, and what the report shows of it."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    settings, data = Settings.from_dict(job["settings"]), DocstringTask.from_dict(job["data"])
    torch.set_num_threads(settings.threads or available_cores())
    recipe = recipe_of(method, settings, Path(job["output"]))
    task, tokenizer, model = load_base(recipe, data.labels)
    base_parameters = sum(p.numel() for p in model.encoder.parameters())

    start = time.perf_counter()
    if method == PROBE:
        run = train_probe(model, tokenizer, data, settings, progress)
    else:
        run = train_adapter(method, model, tokenizer, data, settings, progress)
    seconds = time.perf_counter() - start

    store(model, folder / method, recipe, task)
    test = Batches(data.test, tokenizer, settings.batch_size, settings.max_tokens)
    predicted = logits_of(model, test).argmax(-1)
    matrix = confusion(predicted, test.labels, len(data.labels))
    return {
        "method": method,
        **scores(matrix),
        "trainable_parameters": run.trainable_parameters,
        "seconds": seconds,
        "peak_memory_bytes": process_peak(),
        "base_parameters": base_parameters,
        "validation_accuracy": run.validation[-1][1],
        "chosen_on_validation": run.chosen,
        "loss_by_step": run.loss,
        "validation_accuracy_by_epoch": run.validation,
        "confusion": matrix.tolist(),
        "predicted": predicted.tolist(),
        "prediction": task.predict(model, tokenizer, [settings.sentence])[0],
    }


def store(model: MeanPooledClassifier, folder: Path, recipe: Recipe, task: Task) -> None:
    """The adapter with its recipe and its task: a folder that `adaptome predict` and `adaptome eval` read.

    The probe has no adapter; its head is stored as it is.
    """
    folder.mkdir()
    if recipe.methods:
        ad.save(model, folder / "adapter", base_id=ENCODER)
        write_atomic(folder / "recipe.yaml", recipe.to_yaml(full=True))
    else:
        write_atomic(folder / "head.safetensors", save(dict(model.classifier.state_dict())))
    write_atomic(folder / "task.json", json.dumps(task.to_dict(), indent=1))


def predict(folder: Path, sentence: str) -> dict[str, Any]:
    """What a stored adapter says of a sentence: {"label", "score", "scores"}.

    Raises:
        TrainingError: the folder holds no finished run.
        CheckpointError: its adapter cannot be used.
    """
    from adaptome import training

    torch.set_num_threads(available_cores())
    return dict(training.predict(folder, [sentence])[0])


def available_cores() -> int:
    """The cores this process may use; OMP_NUM_THREADS, where set, says how many it should."""
    if wanted := os.environ.get("OMP_NUM_THREADS", ""):
        return max(1, int(wanted.split(",")[0]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str], out: TextIO) -> int:
    """Runs one job; what libraries print goes to the standard error, so that `out` holds JSON lines only."""

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=out, flush=True)

    job, folder, argument = arguments
    try:
        if job == "train":
            tell("result", train(Path(folder), argument, lambda *step: tell("progress", step)))
        else:
            tell("result", predict(Path(folder), argument))
    except AdaptomeError as error:
        tell("error", str(error))
        return 1
    return 0


if __name__ == "__main__":
    lines, sys.stdout = sys.stdout, sys.stderr
    sys.exit(main(sys.argv[1:], lines))
