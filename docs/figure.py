"""Small line charts as inline SVG: no script, no font, no colour that a dark page would hide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 520, 220, 70, 40, 14, 16


def short(count: float) -> str:
    """A count as an axis shows it: 950, 12k, 3.4M, 1.1G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def line_chart(xs: Sequence[int], ys: Sequence[int], x_label: str, y_label: str) -> str:
    """`ys` over `xs`, both axes logarithmic, a mark and a tick at every x.

    Args:
        xs: positive, increasing, at least two.
        ys: positive, as many.
        x_label: below the axis.
        y_label: the figure's title for readers who do not see it, too.
    """
    place_x = _scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    low, high = float(min(ys)), float(max(ys))
    if low == high:
        low, high = low / 2, high * 2
    place_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    points = [(place_x(x), place_y(y)) for x, y in zip(xs, ys, strict=True)]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}" '
        'xmlns="http://www.w3.org/2000/svg" style="max-width:100%;height:auto" fill="currentColor" font-size="11">'
    ]
    for y in _ticks(low, high):
        at = place_y(y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" opacity=".15"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x, (at, _) in zip(xs, points, strict=True):
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#3f51b5" stroke-width="2"/>')
    for (at, height), value in zip(points, ys, strict=True):
        parts.append(
            f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3.5" fill="#3f51b5"><title>{value:,}</title></circle>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text></svg>')
    return "".join(parts)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = math.log(high / low)
    return lambda value: start + (end - start) * math.log(value / low) / span


def _ticks(low: float, high: float) -> list[float]:
    """Round values between low and high: decades, or 1-2-5 when there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(ticks) >= 2:
            return ticks
    return [low, high]


def bar_chart(values: Mapping[str, Mapping[str, float]], title: str) -> str:
    """A group of bars for each name, a bar for each series, beginning at zero; the number stands beside it.

    Args:
        values: name -> series -> length, at least zero; every name has the same series.
        title: the figure's title for readers who do not see it, too.
    """
    series = list(dict.fromkeys(key for bars in values.values() for key in bars))
    colours, high = (
        ("#3f51b5", "#9e9e9e"),
        max((v for bars in values.values() for v in bars.values()), default=1.0) or 1.0,
    )
    left, thick, y, drawn = 170, 12, 24, []
    legend = "".join(
        f'<rect x="{left + 110 * i}" y="6" width="10" height="10" fill="{colours[i % 2]}"/><text x="{left + 110 * i + 15}" y="15">{escape(key)}</text>'
        for i, key in enumerate(series)
    )
    for name, bars in values.items():
        drawn.append(
            f'<text x="{left - 6}" y="{y + thick * len(bars) / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for i, key in enumerate(series):
            long = (WIDTH - left - 60) * bars.get(key, 0.0) / high
            drawn.append(
                f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{thick - 2}" fill="{colours[i % 2]}"/>'
                f'<text x="{left + long + 5:.1f}" y="{y + thick - 3}">{bars.get(key, 0.0):.3g}</text>'
            )
            y += thick
        y += 6
    return (
        f'<svg viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" '
        f'style="max-width:100%;height:auto" fill="currentColor" font-size="11">{legend}{"".join(drawn)}</svg>'
    )
