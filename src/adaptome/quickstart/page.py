"""The quickstart's report: what came out, how it was trained, where it errs, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from adaptome.data.stdlib_docstrings import DocstringTask
from adaptome.report import Bars, Curves, Report, smooth

LEAD = (
    "A small pretrained sentence encoder learns which module of Python's standard library a docstring comes from, "
    "with the module's own name masked. The encoder's weights stay frozen; what is trained beside them differs."
)
HOW = (
    "Every method sees the same examples in the same order and was run in a process of its own. Settings were chosen "
    "on the validation split; the test split was used once, for the figures on this page. Seconds run from the loaded "
    "encoder to the last training step, validation included. Peak memory is the most the process held at any moment, "
    "Python, PyTorch and the encoder included. The 95 % intervals (Wilson) tell how far a test split of this "
    "size can be trusted; they do not cover other seeds."
)
DATA = (
    "The sources of the standard library on this machine were read, not run. Each example is the docstring of one "
    "function, class or method, cut after 60 words. The labels are the modules with the most docstrings. A docstring "
    "that stands in the library more than once was taken once, and one that several modules share was left out. A hash "
    "of the text decides its split, so no text is in two of them."
)


def report(metrics: dict[str, Any], results: Sequence[dict[str, Any]], task: DocstringTask) -> Report:
    """The report of one quickstart.

    Args:
        metrics: what metrics.json holds.
        results: what the workers returned, in the order of the methods.
        task: the data.
    """
    page = Report("adaptome quickstart", LEAD)
    best = next(r for r in results if r["method"] == metrics["prediction"]["method"])
    _results(page, metrics, results, best)
    _training(page, results)
    _errors(page, best, task)
    page.section("Test examples", "Some on which the methods disagree, then some on which they agree.")
    page.table(
        list(_examples(results, task)), caption="The first such examples of the test split; a tick is right"
    )
    _prediction(page, metrics)
    page.section("How it was measured", HOW).text(DATA)
    page.settings(metrics["settings"], caption="Settings")
    page.settings({**metrics["versions"], "encoder": metrics["encoder"]}, caption="Versions")
    page.settings(metrics["data"], caption="Data")
    return page


def _results(
    page: Report, metrics: dict[str, Any], results: Sequence[dict[str, Any]], best: dict[str, Any]
) -> None:
    page.section("Results")
    facts: dict[str, object] = {f"test accuracy of {best['method']}": f"{best['accuracy']:.1%}"}
    probe = next((r for r in results if r["method"] == "probe"), None)
    if probe is not None and probe is not best:
        facts["points above the probe"] = f"{100 * (best['accuracy'] - probe['accuracy']):+.1f}"
    share = best["trainable_parameters"] / best["base_parameters"]
    facts[f"of {best['base_parameters'] / 1e6:.0f} million parameters trained"] = f"{share:.2%}"
    facts["stored on disk"] = f"{best['stored_bytes'] / 1e6:.1f} MB"
    facts["for everything"] = f"{metrics['seconds']:.0f} s"
    page.facts(facts)
    rows = [
        {
            "method": run["method"],
            "accuracy": run["accuracy"],
            "95 % interval": "{:.1%} to {:.1%}".format(*run["accuracy_interval_95"]),
            "macro-F1": run["macro_f1"],
            "trainable parameters": run["trainable_parameters"],
            "seconds": run["seconds"],
            "peak memory, MiB": run["peak_memory_bytes"] and run["peak_memory_bytes"] / 2**20,
            "stored, kB": run["stored_bytes"] / 1000,
        }
        for run in results
    ]
    formats = {
        "accuracy": ".1%",
        "macro-F1": ".3f",
        "seconds": ",.1f",
        "peak memory, MiB": ",.0f",
        "stored, kB": ",.0f",
    }
    marked = {"accuracy": "max", "macro-F1": "max"}
    examples = f"{metrics['data']['test']:,} test examples of {metrics['data']['labels']} modules"
    page.table(rows, caption=f"Methods on {examples}", formats=formats, best=marked)

    def bars(title: str, key: str, spec: str, unit: float = 1) -> Bars:
        return Bars(title, {r["method"]: r[key] and r[key] / unit for r in results}, spec)

    intervals = {run["method"]: tuple(run["accuracy_interval_95"]) for run in results}
    page.bars(
        Bars(
            "Accuracy, with its 95 % interval",
            {r["method"]: r["accuracy"] for r in results},
            ".1%",
            intervals,
        ),
        bars("Trainable parameters", "trainable_parameters", ",.0f"),
        bars("Seconds of training", "seconds", ",.1f"),
        bars("Peak memory, MiB", "peak_memory_bytes", ",.0f", 2**20),
    )


def _training(page: Report, results: Sequence[dict[str, Any]]) -> None:
    trained = [run for run in results if run["loss_by_step"]]
    if not trained:
        return
    page.section(
        "Training", "The probe's head is fitted to features computed once, so it has no curve of its own."
    )
    last = max(epoch for run in trained for epoch, _ in run["validation_accuracy_by_epoch"])
    validation = {
        # A method without epochs is a level line.
        run["method"]: run["validation_accuracy_by_epoch"]
        if run in trained
        else [(epoch, run["validation_accuracy"]) for epoch in range(1, last + 1)]
        for run in results
    }
    page.curves(
        Curves("Validation accuracy", validation, "epoch", "accuracy", percent=True),
        Curves(
            "Training loss",
            {r["method"]: smooth(r["loss_by_step"]) for r in results},
            "step",
            "cross-entropy",
        ),
    )


def _errors(page: Report, best: dict[str, Any], task: DocstringTask) -> None:
    matrix, labels = best["confusion"], task.labels
    wrong = sorted(
        (
            (count, labels[i], labels[j])
            for i, row in enumerate(matrix)
            for j, count in enumerate(row)
            if i != j and count
        ),
        key=lambda found: (-found[0], found[1:]),
    )
    most = "; ".join(f"{true} for {taken} ({count} times)" for count, true, taken in wrong[:3])
    page.section(
        "Where it errs", f"Most often mistaken by {best['method']}: {most}." if wrong else "Nowhere."
    )
    page.confusion(matrix, labels, caption=f"Test examples by true and predicted module ({best['method']})")


def _examples(
    results: Sequence[dict[str, Any]], task: DocstringTask, each: int = 6
) -> Iterator[dict[str, object]]:
    predicted = list(zip(*(run["predicted"] for run in results), strict=True))
    for agree in (False, True):
        places = [i for i, given in enumerate(predicted) if (len(set(given)) == 1) is agree]
        for i in places[:each]:
            example = task.test[i]
            text = example.text if len(example.text) <= 180 else example.text[:179].rstrip() + "…"
            answers = {
                run["method"]: ("✓ " if label == example.label else "✗ ") + task.labels[label]
                for run, label in zip(results, predicted[i], strict=True)
            }
            yield {"module": task.labels[example.label], "docstring": text, **answers}


def _prediction(page: Report, metrics: dict[str, Any]) -> None:
    found = metrics["prediction"]
    page.section(
        "Loaded again in a new process",
        f"“{found['sentence']}” is read as {found['label']}. The largest difference between the probabilities before "
        f"saving {found['method']} and after loading it is {found['largest_difference']:.1g}.",
    )
    likeliest = dict(sorted(found["scores"].items(), key=lambda item: -item[1])[:4])
    page.bars(Bars("Probability of the likeliest modules", likeliest, ".1%", one_colour=True))
