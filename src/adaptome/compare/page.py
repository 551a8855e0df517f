"""The report of a comparison: the table, the means with their intervals, and the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptome.report import Bars, Curves, Report

INTERVALS = (
    "Whiskers and ± are 95 % intervals of the mean over the seeds (Student's t). Seeds change the adapters' start and "
    "the order of the data; the test examples are the same, so the intervals say nothing about other examples."
)


def page(comparison: Mapping[str, Any], title: str | None = None) -> Report:
    """The report of what `Comparison.to_dict` gives."""
    rows, metric = comparison["rows"], comparison["metric"]
    seeds = len(comparison["seeds"])
    lead = f"{len(rows)} methods on {comparison['task']}, {seeds} seed{'s' * (seeds > 1)} each; {metric} on {comparison['split']}."
    spec = ".1%" if "accuracy" in metric or metric.endswith("f1") else ".4g"
    report = Report(title or "Methods compared", lead).section("Results")
    best = next(row for row in rows if row["label"] == comparison["best"])
    report.facts(
        {f"{metric} of {best['label']}": format(best["mean"], spec), "trained parameters": best["parameters"]}
    )
    report.table(
        [
            {
                "method": row["label"],
                "trained parameters": row["parameters"],
                "of all": row["share"],
                metric: row["mean"],
                "±": None if row["low"] is None else row["mean"] - row["low"],
                "learning rate": row["learning_rate"],
                "seconds": row["seconds"],
            }
            for row in rows
        ],
        caption=f"{metric} on {comparison['split']}, mean over the seeds {', '.join(map(str, comparison['seeds']))}",
        formats={"of all": ".3%", metric: spec, "±": spec, "learning rate": "g", "seconds": ",.1f"},
        best={metric: "max" if comparison["greater_is_better"] else "min"},
    )
    means = {row["label"]: max(row["mean"], 0.0) for row in rows}
    ranges = {r["label"]: (max(r["low"], 0.0), r["high"]) for r in rows if r["low"] is not None}
    report.bars(
        Bars(f"{metric} on {comparison['split']}", means, spec, ranges),
        Bars("Trained parameters", {row["label"]: row["parameters"] for row in rows}, ",.0f"),
    )
    report.text(INTERVALS)
    curves = {row["label"]: _points(row, "loss") for row in rows}
    evaluated = {row["label"]: _points(row, "eval_loss") for row in rows}
    report.section("Training", f"The first seed, {comparison['seeds'][0]}.")
    report.curves(
        Curves("Training loss", curves, "step", "loss"),
        *([Curves("Validation loss", evaluated, "step", "loss")] if any(evaluated.values()) else []),
    )
    return report


def _points(row: Mapping[str, Any], key: str) -> list[tuple[float, float]]:
    return [(float(entry["step"]), float(entry[key])) for entry in row["history"] if key in entry]
