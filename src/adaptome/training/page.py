"""The report of finished runs: curves, scores, examples with predictions, cost and recipe, from what the runs' folders hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptome.core.errors import TrainingError
from adaptome.report import Bars, Curves, Report, Shown, logged, points, smooth
from adaptome.report.streams import stream_section
from adaptome.training.examples import Example, read_examples
from adaptome.training.folder import METRICS, RECIPE, REPORT, SCORES, STAGES
from adaptome.training.sketches import read_sketches

CALIBRATION = (
    "Calibration: of the examples whose likeliest answer has a certain probability, how many are right. On the diagonal the "
    "probabilities are what they say. ECE, the expected calibration error, is the mean distance from it over the examples."
)


@dataclass(frozen=True)
class Finished:
    """What the folder of a finished run holds.

    Attributes:
        label: its name on the page.
        result: metrics.json.
        recipe: the text of recipe.yaml.
        scores: scores.json, or empty.
    """

    label: str
    folder: Path
    result: Mapping[str, Any]
    recipe: str
    scores: Mapping[str, Any] = field(default_factory=dict)

    @property
    def examples(self) -> list[Example]:
        return read_examples(self.folder)


def finished_runs(folder: Path, label: str | None = None) -> list[Finished]:
    """The run in a folder, or the stages of one that has stages, in order.

    Raises:
        TrainingError: there is no finished run.
    """
    if (folder / STAGES).is_file():
        names = [stage["name"] for stage in _json(folder / STAGES)["stages"]]
        return [
            run for n in names for run in finished_runs(folder / n, n if label is None else f"{label}: {n}")
        ]
    missing = [name for name in (METRICS, RECIPE) if not (folder / name).is_file()]
    if missing:
        raise TrainingError(
            f"{folder} holds no finished run: {', '.join(missing)} missing.\n  Give the output folder of `adaptome train`."
        )
    scores = _json(folder / SCORES) if (folder / SCORES).is_file() else {}
    result = _json(folder / METRICS)
    text = (folder / RECIPE).read_text(encoding="utf-8")
    return [Finished(label or result["method"], folder, result, text, scores)]


def write_report(folders: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Write the report of one or several runs.

    Args:
        folders: the output folders of finished runs, with stages or without.
        path: the file to write; None for report.html in the first folder.

    Raises:
        TrainingError: a folder holds no finished run.
    """
    places = [Path(folder) for folder in folders]
    labels: list[str | None] = [None] if len(places) == 1 else list(_labels(places))
    runs = [run for place, label in zip(places, labels, strict=True) for run in finished_runs(place, label)]
    return page(runs, _title(places[0]) if len(places) == 1 else "Runs side by side").write(
        path or places[0] / REPORT
    )


def page(runs: Sequence[Finished], title: str) -> Report:
    """The report of runs that are shown together: one, the stages of one, or several to be set side by side."""
    last = runs[-1].result
    what = " and ".join(dict.fromkeys(f"{run.result['task']} with {run.result['method']}" for run in runs))
    lead = f"{what}." if len(runs) == 1 else f"{what}: {', '.join(run.label for run in runs)}."
    report = Report(title, lead).section("Results")
    if len(runs) > 1:
        report.text(f"Of {runs[-1].label}:")
    report.facts(_facts(last))
    report.table(_rows(runs), caption="Metrics and cost", formats=_FORMATS)
    for run in runs:
        notes = [f"{run.label}: {note}" if len(runs) > 1 else note for note in run.result["notes"]]
        for note in notes:
            report.text(f"Note: {note}")
    for run in runs:
        stream_section(report, run.result, run.label if len(runs) > 1 else "")
    _training(report, runs)
    _sketches(report, runs)
    _trust(report, runs)
    for run in runs:
        _examples(report, run, len(runs) > 1)
    report.section("Recipe", "As it was run, defaults written out.")
    for run in runs:
        report.listing(run.recipe, caption=f"recipe.yaml of {run.label}" if len(runs) > 1 else "recipe.yaml")
    return report


_FORMATS = {
    "trained": ",",
    "of all": ".3%",
    "steps": ",",
    "seconds": ",.1f",
    "peak memory, MiB": ",.0f",
    "foretold, MiB": ",.0f",
}


def _facts(result: Mapping[str, Any]) -> dict[str, object]:
    """The tiles: the metrics that come first, then what it took."""
    metrics = sorted(result["metrics"].items(), key=lambda item: item[0].startswith("loss"))
    facts: dict[str, object] = {f"{name} on {result['split']}": _figure(value) for name, value in metrics[:2]}
    share = result["trainable_parameters"] / result["total_parameters"]
    facts["trained parameters"] = result["trainable_parameters"]
    facts["of all"] = f"{share:.3%}"
    facts["of training"] = f"{result['seconds']:,.1f} s"
    facts["peak memory"] = f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    return facts


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _rows(runs: Sequence[Finished]) -> list[dict[str, object]]:
    metrics = list(dict.fromkeys(name for run in runs for name in run.result["metrics"]))
    foretold = any(run.result.get("foretold_memory_bytes") is not None for run in runs)
    return [
        {
            "run": run.label,
            **{name: run.result["metrics"].get(name) for name in metrics},
            "trained": run.result["trainable_parameters"],
            "of all": run.result["trainable_parameters"] / run.result["total_parameters"],
            "steps": run.result["steps"],
            "kept step": run.result["best_step"],
            "seconds": run.result["seconds"],
            "peak memory, MiB": run.result["peak_memory_bytes"] / 2**20,
            **({"foretold, MiB": _mebibytes(run.result.get("foretold_memory_bytes"))} if foretold else {}),
        }
        for run in runs
    ]


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _training(report: Report, runs: Sequence[Finished]) -> None:
    """The loss in total and by its terms, the learning rate, and every metric that was followed during training."""
    report.section("Training")
    alone = len(runs) == 1

    def lines(keys: Sequence[str], cut: str = "") -> dict[str, list[tuple[float, float]]]:
        named = {}
        for run in runs:
            for key in keys:
                course = points(run.result["history"], key)
                name = key.removeprefix(cut) or key
                if course:
                    named[name if alone else f"{run.label} {name}" if len(keys) > 1 else run.label] = smooth(
                        course, 120
                    )
        return named

    histories = [entry for run in runs for entry in run.result["history"]]
    terms = logged(histories, "loss/")
    followed = [k for k in logged(histories, "eval_") if not k.endswith(_TIMES) and "/" not in k]
    panels = [
        Curves("Loss", lines(["loss"]), "step", "loss"),
        *([Curves("Loss by term", lines(terms, "loss/"), "step", "weighted loss")] if terms else []),
        *(
            Curves(f"{key.removeprefix('eval_')} during training", lines([key], "eval_"), "step", key.removeprefix("eval_"))
            for key in followed
        ),
        Curves("Learning rate", lines(["learning_rate"]), "step", "learning rate"),
    ]  # fmt: skip
    report.curves(*(panel for panel in panels if panel.lines))
    _reductions(report, runs)


def _reductions(report: Report, runs: Sequence[Finished]) -> None:
    """What the training loss was at first and in the end of each run, where several are shown."""
    courses = {run.label: points(run.result["history"], "loss") for run in runs}
    rows = [
        {
            "run": label,
            "first loss": course[0][1],
            "lowest": min(loss for _, loss in course),
            "last": course[-1][1],
            "fell by": 1 - course[-1][1] / course[0][1],
        }
        for label, course in courses.items()
        if len(course) > 1 and course[0][1] > 0
    ]
    if len(runs) > 1 and rows:
        formats = {"first loss": ".4f", "lowest": ".4f", "last": ".4f", "fell by": ".1%"}
        report.table(rows, caption="Training loss of each run, as it was logged", formats=formats)


def _sketches(report: Report, runs: Sequence[Finished]) -> None:
    """What the model made as training went."""
    drawn = {run.label: read_sketches(run.folder) for run in runs}
    if not any(drawn.values()):
        return
    report.section("Pictures during training", "Made of the same texts from the same noise each time.")
    for label, pictures in drawn.items():
        for step, picture in pictures.items():
            named = step if len(runs) == 1 else f"{label}, {step}"
            report.example(Shown(named, made={"samples": picture}))


_TIMES = ("_runtime", "_per_second", "_time", "_num_tokens", "_samples")


def _trust(report: Report, runs: Sequence[Finished]) -> None:
    """ROC and calibration curves of the runs that have them."""
    scored = [run for run in runs if run.scores]
    if not scored:
        return
    report.section("How far the scores can be trusted", CALIBRATION)
    found = {run.label: run.scores["calibration"] for run in scored}
    rocs = {run.label: run.scores["roc"] for run in scored if "roc" in run.scores}
    rows = [
        {
            "run": label,
            "ECE": one["ece"],
            "examples": sum(one["examples"]),
            **({"AUROC": rocs[label]["auroc"] if label in rocs else None} if rocs else {}),
        }
        for label, one in found.items()
    ]
    report.table(
        rows,
        caption=f"On {scored[-1].result['split']}",
        formats={"ECE": ".2%", "AUROC": ".4f", "examples": ","},
    )
    diagonal = {"as they say": [(0.0, 0.0), (1.0, 1.0)]}
    calibrated = {name: list(zip(one["confidence"], one["right"], strict=True)) for name, one in found.items()}  # fmt: skip
    chance = {"chance": [(0.0, 0.0), (1.0, 1.0)]}
    ways = {name: list(zip(one["fpr"], one["tpr"], strict=True)) for name, one in rocs.items()}
    report.curves(
        Curves("Calibration", {**calibrated, **diagonal}, "probability of the answer", "share right", True),
        *([Curves("ROC", {**ways, **chance}, "false positive rate", "true positive rate", True)] if ways else []),
    )  # fmt: skip
    if len(scored) == 1:
        one = scored[0].scores["calibration"]
        bins = {f"probability {c:.0%}": float(n) for c, n in zip(one["confidence"], one["examples"], strict=True)}  # fmt: skip
        report.bars(Bars("Examples by probability of the answer", bins, ",.0f", one_colour=True))


def _examples(report: Report, run: Finished, several: bool) -> None:
    examples = run.examples
    if not examples:
        return
    report.section(f"Examples of {run.label}" if several else "Examples", f"Rows of {run.result['split']}, spread evenly over it, with their predictions.")  # fmt: skip
    for example in examples:
        report.example(example.shown, truth=example.truth, right=example.right)


def _labels(places: Sequence[Path]) -> list[str]:
    """The folders' names, with those above where they are the same."""
    names = [place.resolve().name for place in places]
    if len(set(names)) == len(names):
        return names
    return [str(place) for place in places]


def _title(folder: Path) -> str:
    import yaml

    content = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    return str(content.get("title") or folder.resolve().name)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
