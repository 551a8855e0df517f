"""What a limit on tokens does to the examples, told to the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cut_rows(encoded: Any, texts: Sequence[Sequence[str]], processor: Any, limit: int) -> int:
    """How many rows a tokenizer cut to `limit` tokens.

    Args:
        encoded: what it returned, with truncation.
        texts: what it read: one list of texts, or two of pairs.
        processor: the tokenizer.
        limit: tokens of a row, special ones counted.
    """
    encodings = getattr(encoded, "encodings", None)
    if encodings:
        return sum(bool(encoding.overflowing) for encoding in encodings)
    full = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) >= limit]  # tokenizers in Python
    if not full:
        return 0
    whole = processor(*[[column[i] for i in full] for column in texts])["input_ids"]
    return sum(len(ids) > limit for ids in whole)


def cut_note(cut: int, rows: int, split: str, limit: int, dropped: bool = False) -> list[str]:
    """The note on rows that were cut, or dropped; none where no row was."""
    done = "left out" if dropped else "cut"
    return (
        [f"{cut} of {rows} examples of {split} exceed {limit} tokens and were {done} (task.max_length)."]
        if cut
        else []
    )
