"""The report of a comparison: the table, the means with their intervals, and the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptome.compare.speed import OPERATIONS, RATE
from adaptome.report import Bars, Curves, Dots, Report, Scatter, points

INTERVALS = (
    "Whiskers and ± are 95 % intervals of the mean over the seeds (Student's t). Seeds change the adapters' start and "
    "the order of the data; the test examples are the same, so the intervals say nothing about other examples. A row is told "
    "apart from the best where the interval of their difference, seed by seed, leaves out zero; of many rows, one in twenty "
    "is by chance."
)


def page(
    comparison: Mapping[str, Any], title: str | None = None, published: Sequence[Mapping[str, Any]] = ()
) -> Report:
    """The report of what `Comparison.to_dict` gives; `published` as `results.read_published` gives it."""
    rows, metric = comparison["rows"], comparison["metric"]
    seeds = len(comparison["seeds"])
    lead = f"{len(rows)} methods on {comparison['task']}, {seeds} seed{'s' * (seeds > 1)} each; {metric} on {comparison['split']}."
    spec = ".1%" if "accuracy" in metric or metric.endswith("f1") else ".4g"
    report = Report(title or "Methods compared", lead).section("Results")
    of = {row["label"]: row for row in rows}
    best = of[comparison["best"]]
    report.facts(
        {f"{metric} of {best['label']}": format(best["mean"], spec), "trained parameters": best["parameters"]}
    )
    report.text(verdict(comparison))
    if comparison["by_method"]:
        report.table(
            [
                {
                    "method": name,
                    "best": labels[0],
                    metric: of[labels[0]]["mean"],
                    "±": _half(of[labels[0]]),
                    "then": labels[1],
                    f"its {metric}": of[labels[1]]["mean"],
                }
                for name, labels in comparison["by_method"].items()
            ],
            caption="The best row of each method that has several",
            formats={metric: spec, "±": spec, f"its {metric}": spec},
        )
    report.table(
        [
            {
                "method": row["label"],
                metric: row["mean"],  # first, as a phone shows the first columns
                "±": _half(row),
                "rank": comparison["ranking"].index(row["label"]) + 1,
                "trained parameters": row["parameters"],
                "of all": row["share"],
                "learning rate": row["learning_rate"],
                "training s": row["seconds"],
                "ms per step": 1000 * row["step_seconds"],
                "evaluating s": row["evaluation_seconds"],
            }
            for row in rows
        ],
        caption=f"{metric} on {comparison['split']}, mean over the seeds {', '.join(map(str, comparison['seeds']))}",
        formats={
            "of all": ".3%",
            metric: spec,
            "±": spec,
            "learning rate": ".3g",
            "training s": ",.1f",
            "ms per step": ",.1f",
            "evaluating s": ",.1f",
        },
        best={metric: "max" if comparison["greater_is_better"] else "min"},
    )
    means = {row["label"]: max(row["mean"], 0.0) for row in rows}
    ranges = {r["label"]: (max(r["low"], 0.0), r["high"]) for r in rows if r["low"] is not None}
    report.bars(
        Bars(f"{metric} on {comparison['split']}", means, spec, ranges),
        Bars("Trained parameters", {row["label"]: row["parameters"] for row in rows}, ",.0f"),
    )
    report.text(INTERVALS)
    _points_and_pairs(report, comparison, spec)
    curves = {row["label"]: points(row["history"], "loss") for row in rows}
    evaluated = {row["label"]: points(row["history"], "eval_loss") for row in rows}
    report.section("Training", f"The first seed, {comparison['seeds'][0]}.")
    report.curves(
        Curves("Training loss", curves, "step", "loss"),
        *([Curves("Validation loss", evaluated, "step", "loss")] if any(evaluated.values()) else []),
    )
    _conditions(report, comparison, published)
    return report


def _points_and_pairs(report: Report, comparison: Mapping[str, Any], spec: str) -> None:
    """Quality against cost, the single seeds, the paired tests, memory and classes."""
    rows, metric = comparison["rows"], comparison["metric"]
    ranges = {row["label"]: (row["low"], row["high"]) for row in rows if row["low"] is not None}
    places = {
        "parameters": {row["label"]: (float(row["parameters"]), row["mean"]) for row in rows},
        "seconds": {row["label"]: (float(row["seconds"]), row["mean"]) for row in rows},
    }
    report.section("Quality and cost", "The line joins the rows that no other beats with as few parameters.")
    report.points(
        Scatter(f"{metric} and trained parameters", places["parameters"], "trained parameters", metric, ranges, comparison["pareto"], log=True),
        Scatter(f"{metric} and training time", places["seconds"], "seconds of training, evaluation aside", metric, ranges),
    )  # fmt: skip
    _speed(report, comparison, ranges)
    memory = {row["label"]: row["memory"] / 2**20 for row in rows if row["memory"]}
    if memory:
        report.bars(Bars("Peak memory, MiB", memory, ",.0f"))
    report.section("Seeds", "A dot is a seed; the whisker is the 95 % interval of the mean.")
    report.points(Dots(metric, {row["label"]: row["values"] for row in rows}, ranges, spec))
    if comparison["pairs"]:
        report.text(
            "Each two rows: the mean of their differences, its 95 % interval, and p of the paired t test."
        )
        report.table(
            [
                {
                    "pair": f"{p['one']} − {p['other']}",
                    "difference": p["difference"],
                    "from": p["low"],
                    "to": p["high"],
                    "p": p["p"],
                    "p (Holm)": p["adjusted"],
                    "": "tie" if p["tie"] else "told apart",
                }
                for p in comparison["pairs"]
            ],
            caption="Differences seed by seed",
            formats={"difference": "+.4f", "from": "+.4f", "to": "+.4f", "p": ".3g", "p (Holm)": ".3g"},
        )
    labels = list(dict.fromkeys(name for row in rows for name in row["classes"]))
    if labels:
        report.section(
            "Classes", "The share of each label's examples that were found, a mean over the seeds."
        )
        report.table(
            [{"label": name, **{row["label"]: row["classes"].get(name) for row in rows}} for name in labels],
            caption="Recall by label",
            formats={row["label"]: ".1%" for row in rows},
        )


def _speed(report: Report, comparison: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]) -> None:
    """Quality against the speed of the trained models, where it was measured; the line joins what no faster row beats."""
    rows, metric = comparison["rows"], comparison["metric"]
    if not all(RATE in row["metrics"] for row in rows):
        return
    places = {row["label"]: (row["metrics"][RATE], row["mean"]) for row in rows}
    sign, front = 1 if comparison["greater_is_better"] else -1, list[str]()
    for name, (_, value) in sorted(places.items(), key=lambda item: -item[1][0]):
        if not front or sign * value > sign * places[front[-1]][1]:
            front.append(name)
    report.points(
        Scatter(f"{metric} and speed", places, "examples a second", metric, ranges, front),
        Scatter(
            f"{metric} and work",
            {row["label"]: (row["metrics"][OPERATIONS] / 1e9, row["mean"]) for row in rows},
            "10⁹ operations of an example",
            metric,
            ranges,
        ),
    )


def _conditions(
    report: Report, comparison: Mapping[str, Any], published: Sequence[Mapping[str, Any]]
) -> None:
    """What the numbers were made with, and those of others."""
    if published:
        report.section(
            "Published results of PEFT",
            "Other models, data and machines: to be read with their conditions, not to be ranked with the rows above.",
        )
        report.table(
            published,
            caption="PEFT's method comparison",
            formats={
                "trained parameters": ",.0f",
                "test score": ".3f",
                "train seconds": ",.0f",
                "peak MiB": ",.0f",
            },
        )
    if comparison["recipe"]:
        report.section("Conditions")
        report.settings(comparison["recipe"], caption="The recipe; what is not there is at its default")
        report.settings(comparison["versions"], caption="Versions")


def verdict(comparison: Mapping[str, Any]) -> str:
    """Which row is best, and from which others it is not told apart."""
    rows, best, rivals = comparison["rows"], comparison["best"], comparison["not_told_apart"]
    if len(rows) == 1:
        return f"{best} alone was measured."
    if len({tuple(row["values"]) for row in rows}) == 1:
        return f"No row is best: all have the same {comparison['metric']}. compare.metric names another, such as loss."
    if len(comparison["seeds"]) == 1:
        return f"Best: {best}. With one seed no difference is told from chance."
    if not rivals:
        return f"Best: {best}, told apart from every other row."
    if len(rivals) == len(rows) - 1:
        return f"Best: {best}, told apart from no other row."
    return f"Best: {best}. Not told apart from it: {', '.join(rivals)}."


def _half(row: Mapping[str, Any]) -> float | None:
    """Half of the interval of a row's mean."""
    return None if row["low"] is None else float(row["mean"] - row["low"])
