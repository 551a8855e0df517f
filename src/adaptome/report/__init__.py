"""Self-contained HTML reports: tables, curves, bars and confusion matrices in one file, with nothing loaded."""

from adaptome.report.charts import Bars, Curves
from adaptome.report.page import Report

__all__ = ["Bars", "Curves", "Report"]
