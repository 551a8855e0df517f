"""Line charts, bar charts and heat maps as inline SVG: no library, no script; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 14, 40
COLOURS = 6
# Lines differ in dashes as well as in colour, for print and for readers who see no difference in hue.
DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 2", "1 2")


@dataclass(frozen=True)
class Curves:
    """A line chart.

    Args:
        title: what is shown.
        lines: name to points (x, y), x ascending; points that are not finite are left out.
        x, y: what the axes measure, with the unit.
        percent: y is a share and is written in percent.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x: str
    y: str
    percent: bool = False


@dataclass(frozen=True)
class Bars:
    """A chart of horizontal bars from zero.

    Args:
        title: what is shown, with the unit.
        values: name to value, zero or more; None where there is none.
        spec: how the values are written, such as ".1%" or ",.0f".
        ranges: name to (low, high), drawn as a whisker: a confidence interval.
        one_colour: the names are not the series that other charts of the page colour.
    """

    title: str
    values: Mapping[str, float | None]
    spec: str = ".4g"
    ranges: Mapping[str, tuple[float, float]] | None = None
    one_colour: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A table of shares, each cell as dark as its value.

    Args:
        title: what is shown.
        values: `values[i][j]` of row i and column j, from 0 to 1; None where there is none.
        rows, columns: their names, from top and from the left.
        x, y: what columns and rows are.
        spec: how a value is written in its cell.
    """

    title: str
    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    x: str
    y: str
    spec: str = ".0%"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low..high; about one value alone, a half of it to either side.

    >>> ticks(0.31, 0.82)
    [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    >>> ticks(0.02, 0.02)
    [0.01, 0.015, 0.02, 0.025, 0.03]
    >>> ticks(0.5, 0.5 + 1e-15) == ticks(0.5, 0.5)
    True
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # values that differ by rounding alone are one
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= about + 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def curves(panel: Curves, figure: str) -> str:
    """The line chart as a figure, with a legend and the last values as text."""
    lines = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in panel.lines.items()
    }
    points = [point for line in lines.values() for point in line] or [(0.0, 0.0)]
    across = ticks(min(x for x, _ in points), max(x for x, _ in points), 4)
    up = ticks(min(y for _, y in points), max(y for _, y in points))
    spec = ".0%" if panel.percent else "g"

    def px(x: float) -> float:
        return LEFT + (x - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    drawn = [_axis_y(up, py, spec), _axis_x(across, px), _axis_names(panel)]
    for i, line in enumerate(lines.values()):
        if not line:
            continue
        path = "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in line)
        drawn.append(f'<path class="line c{i % COLOURS}" d="{path}"{_dash(i)}/>')
        x, y = line[-1]
        drawn.append(f'<circle class="dot c{i % COLOURS}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5"/>')
    last = "; ".join(
        f"{name} ends at {format(line[-1][1], '.1%' if panel.percent else '.4g')}"
        if line
        else f"{name} has no points"
        for name, line in lines.items()
    )
    return _figure(figure, panel.title, f"{panel.y} over {panel.x}: {last}.", drawn, HEIGHT, _legend(lines))


def bars(panel: Bars, figure: str) -> str:
    """The bar chart as a figure: name and value stand above each bar, so that long names fit on a phone."""
    row, top = 46, 4
    values = {
        name: value for name, value in panel.values.items() if value is not None and math.isfinite(value)
    }
    ranges = panel.ranges or {}
    largest = max([*values.values(), *(high for _, high in ranges.values())], default=0.0) or 1.0
    drawn = []
    for i, name in enumerate(panel.values):
        y = top + i * row
        value = values.get(name)
        text = "not measured" if value is None else format(value, panel.spec)
        drawn.append(
            f'<text x="0" y="{y + 13}" class="name">{escape(name)}</text>'
            f'<text x="{WIDTH}" y="{y + 13}" text-anchor="end" class="value">{escape(text)}</text>'
            f'<rect class="track" x="0" y="{y + 20}" width="{WIDTH}" height="14" rx="3"/>'
        )
        if value is not None:
            width = max(value / largest * WIDTH, 1.5)
            drawn.append(
                f'<rect class="bar c{0 if panel.one_colour else i % COLOURS}" x="0" y="{y + 20}" width="{width:.1f}" height="14" rx="3"/>'
            )
        if name in ranges:
            low, high = (bound / largest * WIDTH for bound in ranges[name])
            drawn.append(
                f'<path class="whisker" d="M{low:.1f} {y + 27}H{high:.1f}M{low:.1f} {y + 22}v10M{high:.1f} {y + 22}v10"/>'
            )
    told = "; ".join(f"{name} {format(value, panel.spec)}" for name, value in values.items())
    return _figure(figure, panel.title, f"{told}.", drawn, top + row * len(panel.values), "")


def heat_map(panel: HeatMap, figure: str) -> str:
    """The table as a figure; its values stand in the cells where there is room, and always in the description."""
    left, top, bottom = 96, 4, 58
    wide = (WIDTH - left) / max(len(panel.columns), 1)
    high = min(wide, 34.0)
    drawn, told = [], []
    for i, (name, row) in enumerate(zip(panel.rows, panel.values, strict=True)):
        y = top + i * high
        drawn.append(
            f'<text x="{left - 6}" y="{y + high / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for j, value in enumerate(row):
            if value is None or not math.isfinite(value):
                continue
            x, share = left + j * wide, min(max(value, 0.0), 1.0)
            text = format(value, panel.spec)
            told.append(f"{name}, {panel.columns[j]}: {text}")
            drawn.append(
                f'<rect class="bar c0" fill-opacity="{0.06 + 0.54 * share:.3f}" x="{x + 1:.1f}" y="{y + 1:.1f}" '
                f'width="{wide - 2:.1f}" height="{high - 2:.1f}"><title>{escape(told[-1])}</title></rect>'
            )
            if wide >= 30 and high >= 16:
                drawn.append(
                    f'<text x="{x + wide / 2:.1f}" y="{y + high / 2 + 4:.1f}" text-anchor="middle" class="value">{escape(text)}</text>'
                )
    base = top + high * len(panel.rows)
    for j, name in enumerate(panel.columns):
        x = left + (j + 0.5) * wide
        drawn.append(
            f'<text transform="translate({x:.1f} {base + 12:.1f}) rotate(-30)" text-anchor="end">{escape(name)}</text>'
        )
    drawn.append(
        f'<text x="{WIDTH}" y="{base + bottom - 4:.1f}" text-anchor="end" class="name">{escape(panel.y)} by {escape(panel.x)}</text>'
    )
    return _figure(figure, panel.title, f"{'; '.join(told)}.", drawn, round(base + bottom), "")


def _figure(figure: str, title: str, description: str, drawn: list[str], height: int, legend: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{figure}-title {figure}-desc"><title id="{figure}-title">{escape(title)}</title>'
        f'<desc id="{figure}-desc">{escape(description)}</desc>{"".join(drawn)}</svg>{legend}</figure>'
    )


def _legend(lines: Mapping[str, object]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><path class="line c{i % COLOURS}" d="M1 5H29"{_dash(i)}/>'
        f"</svg>{escape(name)}</li>"
        for i, name in enumerate(lines)
    )
    return f'<ul class="legend">{items}</ul>'


def _dash(i: int) -> str:
    dash = DASHES[i % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _axis_y(up: list[float], py: Callable[[float], float], spec: str) -> str:
    return "".join(
        f'<path class="grid" d="M{LEFT} {py(y):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 7}" y="{py(y) + 4:.1f}" text-anchor="end">{format(y, spec)}</text>'
        for y in up
    )


def _axis_x(across: list[float], px: Callable[[float], float]) -> str:
    base = HEIGHT - BOTTOM
    return f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>' + "".join(
        f'<text x="{px(x):.1f}" y="{base + 16}" text-anchor="middle">{format(x, "g")}</text>' for x in across
    )


def _axis_names(panel: Curves) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle" class="name">'
        f'{escape(panel.x)}</text><text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle" '
        f'class="name">{escape(panel.y)}</text>'
    )
