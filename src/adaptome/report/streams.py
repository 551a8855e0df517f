"""The part of a page that shows a stream of tasks: matrices of scores as heat maps, and each task's score as the others came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptome.report.charts import Curves, HeatMap
from adaptome.report.page import Report

SCENARIOS = {
    "class": "Among all labels seen so far: the task of a row is not told.",
    "task": "Among the labels of the row's own task: it is told.",
    "domain": "The labels stay, and rows change: the task is not told.",
}


def stream_section(report: Report, result: Mapping[str, Any], label: str = "") -> None:
    """Put a run's stream on a page; nothing where it has none.

    Args:
        result: the content of metrics.json.
        label: of the run, where the page shows several.
    """
    told = result.get("continual")
    if not told:
        return
    metric, tasks, rounds = told["metric"], told["tasks"], told["rounds"]
    for scenario, matrix in told["matrices"].items():
        title = f"{label}: {scenario}-incremental" if label else f"{scenario}-incremental"
        report.section(title, f"{told['strategy']}. {SCENARIOS[scenario]}")
        own = {k.partition("_")[2]: v for k, v in result["metrics"].items() if k.startswith(f"{scenario}_")}
        report.facts({name: f"{value:.3f}" for name, value in own.items()})
        report.heat_maps(
            HeatMap(
                f"{metric} after each task",
                matrix,
                rounds,
                tasks,
                "task scored on",
                "last task learned",
                _spec(matrix),
            )
        )
        if len(matrix) > 1:
            lines = {
                task: [(i + 1.0, float(row[j])) for i, row in enumerate(matrix) if row[j] is not None]
                for j, task in enumerate(tasks)
            }
            report.curves(Curves("Each task as the others came", lines, "tasks learned", metric))
    report.table(
        [{"round": name, "steps": steps} for name, steps in zip(rounds, told["steps"], strict=True)],
        caption="Steps of every round",
    )


def _spec(matrix: list[list[float | None]]) -> str:
    """How values are written: shares in percent."""
    return ".0%" if all(0 <= value <= 1 for row in matrix for value in row if value is not None) else ".3g"
