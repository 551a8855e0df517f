"""Self-contained HTML reports: tables, curves, bars, heat maps, confusion matrices and examples in one file, with nothing loaded."""

from adaptome.report.charts import Bars, Curves, HeatMap
from adaptome.report.history import logged, points, smooth
from adaptome.report.page import Report
from adaptome.report.scatter import Dots, Scatter
from adaptome.report.shown import Ranked, Shown, Span, boxed, overlaid

__all__ = [
    "Bars",
    "Curves",
    "Dots",
    "HeatMap",
    "Ranked",
    "Report",
    "Scatter",
    "Shown",
    "Span",
    "boxed",
    "logged",
    "overlaid",
    "points",
    "smooth",
]
