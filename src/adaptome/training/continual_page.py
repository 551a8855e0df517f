"""The page that shows a stream: matrices of scores as heat maps, and each task's score as the others came."""

from __future__ import annotations

from typing import Any

from adaptome.recipe import Recipe
from adaptome.report import Report
from adaptome.report.charts import Curves, HeatMap
from adaptome.training.runs import Result

SCENARIOS = {
    "class": "Among all labels seen so far: the task of a row is not told.",
    "task": "Among the labels of the row's own task: it is told.",
    "domain": "The labels stay, and rows change: the task is not told.",
}


def page(recipe: Recipe, result: Result) -> Report:
    """The report of a finished stream."""
    told: dict[str, Any] = dict(result.continual or {})
    report = Report(
        recipe.title or f"{told['strategy']} on {len(told['tasks'])} tasks",
        f"{told['metric']} on {result.split}.",
    )
    for scenario, matrix in told["matrices"].items():
        report.section(f"{scenario}-incremental", SCENARIOS[scenario])
        own = {k.partition("_")[2]: v for k, v in result.metrics.items() if k.startswith(f"{scenario}_")}
        report.facts({name: f"{value:.3f}" for name, value in own.items()})
        report.heat_maps(
            HeatMap(
                f"{told['metric']} after each task",
                matrix,
                told["rounds"],
                told["tasks"],
                "scored on",
                "after",
            )
        )
        if len(matrix) > 1:
            lines = {
                task: [(i + 1.0, float(row[j])) for i, row in enumerate(matrix) if row[j] is not None]
                for j, task in enumerate(told["tasks"])
            }
            report.curves(Curves("Each task as the others came", lines, "tasks learned", told["metric"]))
    report.section("Training")
    report.table(
        [{"round": name, "steps": steps} for name, steps in zip(told["rounds"], told["steps"], strict=True)],
        caption="Steps of every round",
    )
    losses = [
        (float(n), float(e["loss"])) for n, e in enumerate((e for e in result.history if "loss" in e), 1)
    ]
    report.curves(Curves("Training loss", {"loss": losses}, "log entry", "loss"))
    return report.settings(recipe.model_dump(mode="json", exclude_defaults=True), caption="The recipe")
