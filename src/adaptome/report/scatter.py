"""Points by name: one measure against another with a front, and single values in rows with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from adaptome.report import charts
from adaptome.report.charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH


@dataclass(frozen=True)
class Scatter:
    """One point for each name.

    Args:
        title: what is shown.
        points: name to (x, y); those that are not finite are left out.
        x, y: what the axes measure, with the unit.
        ranges: name to (low, high) of y, drawn as a whisker.
        front: names of points that a line joins, in its order.
        log: x by order of magnitude.
    """

    title: str
    points: Mapping[str, tuple[float, float]]
    x: str
    y: str
    ranges: Mapping[str, tuple[float, float]] | None = None
    front: Sequence[str] = ()
    log: bool = False


@dataclass(frozen=True)
class Dots:
    """Single values of each name in a row of its own, with the mean and its interval.

    Args:
        title: what is shown, with the unit.
        values: name to its values.
        ranges: name to (low, high): an interval of the mean.
        spec: how the means are written.
    """

    title: str
    values: Mapping[str, Sequence[float]]
    ranges: Mapping[str, tuple[float, float]] | None = None
    spec: str = ".4g"


def scatter(panel: Scatter, figure: str) -> str:
    """The points as a figure, with a legend."""
    points = {n: (x, y) for n, (x, y) in panel.points.items() if math.isfinite(x) and math.isfinite(y)}
    log = panel.log and all(x > 0 for x, _ in points.values())
    ranges = {name: ends for name, ends in (panel.ranges or {}).items() if name in points}
    at = {name: math.log10(x) if log else x for name, (x, _) in points.items()}
    ys = [*(y for _, y in points.values()), *(end for ends in ranges.values() for end in ends)] or [0.0]
    xs = list(at.values()) or [0.0]
    across, up = charts.ticks(min(xs), max(xs), 4), charts.ticks(min(ys), max(ys))

    def px(x: float) -> float:
        return LEFT + (x - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    drawn = [charts._axis_y(up, py, "g"), _axis_x(across, px, log), charts._axis_names(charts.Curves("", {}, panel.x, panel.y))]  # fmt: skip
    front = [(px(at[name]), py(points[name][1])) for name in panel.front if name in points]
    if len(front) > 1:
        drawn.append('<path class="axis" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in front) + '"/>')
    for i, name in enumerate(panel.points):
        if name not in points:
            continue
        x, y = px(at[name]), py(points[name][1])
        if name in ranges:
            low, high = (py(end) for end in ranges[name])
            drawn.append(f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        drawn.append(
            f'<circle class="dot c{i % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(name)}</title></circle>'
            f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{i + 1}</text>'
        )
    told = "; ".join(f"{name} at {x:.4g}, {y:.4g}" for name, (x, y) in points.items())
    legend = "".join(f"<li>{i + 1} {escape(name)}</li>" for i, name in enumerate(panel.points))
    return charts._figure(figure, panel.title, f"{panel.y} over {panel.x}: {told}.", drawn, HEIGHT, f'<ul class="legend">{legend}</ul>')  # fmt: skip


def dots(panel: Dots, figure: str) -> str:
    """The rows of values as a figure: name and mean stand above each row."""
    row, top, ranges = 46, 4, panel.ranges or {}
    every = [v for values in panel.values.values() for v in values] + [e for r in ranges.values() for e in r]
    low, high = min(every, default=0.0), max(every, default=1.0)
    span = (high - low) or 1.0

    def px(value: float) -> float:
        return 8 + (value - low) / span * (WIDTH - 16)

    drawn = []
    for i, (name, values) in enumerate(panel.values.items()):
        y = top + i * row
        mean = sum(values) / len(values) if values else math.nan
        drawn.append(
            f'<text x="0" y="{y + 13}" class="name">{escape(name)}</text>'
            f'<text x="{WIDTH}" y="{y + 13}" text-anchor="end" class="value">{format(mean, panel.spec)}</text>'
            f'<path class="grid" d="M0 {y + 27}H{WIDTH}"/>'
        )
        if name in ranges:
            left, right = (px(end) for end in ranges[name])
            drawn.append(
                f'<path class="whisker" d="M{left:.1f} {y + 27}H{right:.1f}M{left:.1f} {y + 22}v10M{right:.1f} {y + 22}v10"/>'
            )
        drawn += [f'<circle class="dot c{i % COLOURS}" cx="{px(v):.1f}" cy="{y + 27}" r="4"/>' for v in values]  # fmt: skip
    told = "; ".join(f"{name} {', '.join(format(v, panel.spec) for v in vs)}" for name, vs in panel.values.items())  # fmt: skip
    return charts._figure(figure, panel.title, f"{told}.", drawn, top + row * len(panel.values), "")


def _axis_x(across: list[float], px: Callable[[float], float], log: bool) -> str:
    base = HEIGHT - BOTTOM
    return f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>' + "".join(
        f'<text x="{px(x):.1f}" y="{base + 16}" text-anchor="middle">{format(10**x if log else x, ".3g")}</text>'
        for x in across
    )
