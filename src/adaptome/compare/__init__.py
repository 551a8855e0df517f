"""Methods side by side: one task, one budget, several seeds, a table with its uncertainty.

    from adaptome.compare import compare
    print(compare("recipe.yaml").to_dict()["rows"])      # and comparison.json, report.html in the recipe's folder

What is compared stands in the recipe's `compare` section.
"""

from __future__ import annotations

from adaptome.compare.study import Step, compare
from adaptome.compare.table import Comparison, Pair, Row

__all__ = ["Comparison", "Pair", "Row", "Step", "compare"]
