"""Reading data: files, folders, archives and hub data sets become splits whose rows know their line.

Example:

    splits = load_splits(train="train.jsonl", columns={"text": "sentence"})
    splits["train"].rows          # a datasets.Dataset
    splits["validation"].where(3) # "train.jsonl, line 17"
"""

from adaptome.data.load import load_splits
from adaptome.data.splits import Split, Splits, Table

__all__ = ["Split", "Splits", "Table", "load_splits"]
