"""Self-contained HTML reports: tables, curves, bars, confusion matrices and examples in one file, with nothing loaded."""

from adaptome.report.charts import Bars, Curves
from adaptome.report.history import logged, points, smooth
from adaptome.report.page import Report
from adaptome.report.scatter import Dots, Scatter
from adaptome.report.shown import Ranked, Shown, Span, boxed, overlaid

__all__ = [
    "Bars",
    "Curves",
    "Dots",
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
