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
from safetensors.torch import load_file, save_file

import adaptome as ad
from adaptome.core.errors import AdaptomeError, CheckpointError
from adaptome.core.files import write_atomic
from adaptome.data.stdlib_docstrings import DocstringTask
from adaptome.quickstart.model import (
    ENCODER,
    Batches,
    confusion,
    load_base,
    logits_of,
    scores,
)
from adaptome.quickstart.settings import Settings
from adaptome.quickstart.training import Progress, train_adapter, train_probe
from adaptome.tasks.pooling import MeanPooledClassifier

PROBE, HEAD, CLASSIFIER = "probe", "head.safetensors", "classifier.json"


def train(folder: Path, method: str, progress: Progress) -> dict[str, Any]:
    """Trains, saves and scores one method: its entry of metrics.json, and what the report shows of it."""
    settings = Settings.from_dict(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    task = DocstringTask.from_dict(json.loads((folder / "data.json").read_text(encoding="utf-8")))
    torch.set_num_threads(settings.threads or available_cores())
    model, tokenizer = load_base(len(task.labels))
    base_parameters = sum(p.numel() for p in model.encoder.parameters())

    start = time.perf_counter()
    if method == PROBE:
        run = train_probe(model, tokenizer, task, settings, progress)
    else:
        run = train_adapter(method, model, tokenizer, task, settings, progress)
    seconds = time.perf_counter() - start

    save(run.model, folder / method, method, task.labels, settings.max_tokens)
    test = Batches(task.test, tokenizer, settings.batch_size, settings.max_tokens)
    probabilities = logits_of(run.model, test).softmax(-1)
    matrix = confusion(probabilities.argmax(-1), test.labels, len(task.labels))
    return {
        "method": method,
        **scores(matrix),
        "trainable_parameters": run.trainable_parameters,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "base_parameters": base_parameters,
        "validation_accuracy": run.validation[-1][1],
        "chosen_on_validation": run.chosen,
        "loss_by_step": run.loss,
        "validation_accuracy_by_epoch": run.validation,
        "confusion": matrix.tolist(),
        "predicted": probabilities.argmax(-1).tolist(),
        "sentence": classify(run.model, tokenizer, task.labels, settings.max_tokens, settings.sentence),
    }


def save(
    model: MeanPooledClassifier, folder: Path, method: str, labels: tuple[str, ...], max_tokens: int
) -> None:
    """The adapter (or the probe's head) as a folder, with what is needed to classify again."""
    if method == PROBE:
        folder.mkdir()
        save_file(
            {"weight": model.classifier.weight.detach(), "bias": model.classifier.bias.detach()},
            folder / HEAD,
        )
    else:
        ad.save(model, folder, base_id=ENCODER)
    about = {"method": method, "labels": labels, "max_tokens": max_tokens}
    write_atomic(folder / CLASSIFIER, json.dumps(about, indent=2))


def predict(folder: Path, sentence: str) -> dict[str, Any]:
    """Loads what `save` wrote onto a fresh base model and classifies a sentence.

    Raises:
        CheckpointError: there is no such folder, or what it holds cannot be used.
    """
    if not (folder / CLASSIFIER).is_file():
        raise CheckpointError(
            f"{folder} holds no classifier of a quickstart ({CLASSIFIER} is not there).\n"
            f"  Name the folder of one method, such as quickstart-output/lora."
        )
    about = json.loads((folder / CLASSIFIER).read_text(encoding="utf-8"))
    torch.set_num_threads(available_cores())
    model, tokenizer = load_base(len(about["labels"]))
    if about["method"] == PROBE:
        model.classifier.load_state_dict(load_file(folder / HEAD))
    else:
        ad.load(model, folder)
    return classify(model, tokenizer, tuple(about["labels"]), about["max_tokens"], sentence)


def classify(
    model: MeanPooledClassifier, tokenizer: Any, labels: tuple[str, ...], max_tokens: int, sentence: str
) -> dict[str, Any]:
    """The sentence, its label, and the probability of every label, the likeliest first."""
    batch = dict(tokenizer([sentence], truncation=True, max_length=max_tokens, return_tensors="pt"))
    model.eval()
    with torch.inference_mode():
        probabilities = model(**batch).logits[0].softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    shares = {labels[i]: probabilities[i].item() for i in order}
    return {"sentence": sentence, "label": labels[order[0]], "probabilities": shares}


def available_cores() -> int:
    """The cores this process may use; OMP_NUM_THREADS, where set, says how many it should."""
    if wanted := os.environ.get("OMP_NUM_THREADS", ""):
        return max(1, int(wanted.split(",")[0]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int | None:
    """Most bytes this process held in memory at once: libraries, base model and all. None where nobody counts.

    Linux's `ru_maxrss` starts from the parent's, whose peak the child inherits through fork and exec; VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
