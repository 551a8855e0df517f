"""A table of a comparison that fills as it goes, on a terminal's standard error."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from adaptome.compare import Step


class LiveTable:
    """Rows with their state, learning rate, seeds done and mean so far; below it how far all is, and when it will be done.

    Made for `compare(..., watch=table)`, inside `with`.
    """

    def __init__(self, seeds: Sequence[int], console: Console | None = None) -> None:
        self.seeds = seeds
        self.rows: dict[str, dict[str, str]] = {}
        self.values: dict[str, list[float]] = {}
        self.last: Step | None = None
        self._console = console or Console(stderr=True)
        self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=1)

    def __call__(self, step: Step) -> None:
        """Takes what has happened."""
        row = self.rows.setdefault(step.label, {"state": "", "rate": ""})
        values = self.values.setdefault(step.label, [])
        if step.seed is None:
            row["state"] = "searching" if not step.done else "tuned"
            row["rate"] = "" if step.value is None else f"{step.value:.3g}"
        elif step.value is None:
            row["state"] = f"seed {step.seed}"
        else:
            values.append(step.value)
            row["state"] = "done" if len(values) == len(self.seeds) else row["state"]
        self.last = step
        self._live.refresh()

    def table(self) -> Table:
        """As it stands."""
        table = Table(caption=self._caption(), caption_justify="left")
        for name in ("method", "state", "learning rate", "seeds", "mean so far"):
            table.add_column(name)
        for label, row in self.rows.items():
            values = self.values[label]
            mean = f"{statistics.fmean(values):.4f}" if values else ""
            table.add_row(label, row["state"], row["rate"], f"{len(values)} of {len(self.seeds)}", mean)
        return table

    def _caption(self) -> str:
        if self.last is None:
            return "reading the data and trying every method on the model"
        step, passed = self.last, self.last.seconds
        told = f"{step.finished} of {step.total} runs, {_time(passed)}"
        if 0 < step.finished < step.total:
            told += f", about {_time(passed / step.finished * (step.total - step.finished))} to go"
        return told

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self._live.stop()


def _time(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))
