"""Few examples of each label: the protocol of few-shot studies."""

from __future__ import annotations

import random

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split


def few_shot(
    splits: dict[str, Split], shots: int, seed: int, column: str = "label"
) -> tuple[dict[str, Split], list[str]]:
    """`shots` rows of each label of train, and as many of validation, drawn by `seed`; test stays whole.

    Returns:
        the splits, and a note where a label has fewer rows.

    Raises:
        DataError: a split has no such column.
    """
    made, notes = dict(splits), []
    for name in ("train", "validation"):
        if name not in splits:
            continue
        split, of = splits[name], dict[str, list[int]]()
        if column not in split.rows.column_names:
            there = split.rows.column_names
            raise DataError(
                f"data.shots counts rows by label, and the {name} split of {split.source} has no column {column!r}."
                f"{did_you_mean(column, there)} Columns there: {', '.join(there)}."
            )
        for row, label in enumerate(split.rows[column]):
            of.setdefault(str(label), []).append(row)
        draw = random.Random(f"{seed} {name}")
        chosen = [row for _, rows in sorted(of.items()) for row in draw.sample(rows, min(shots, len(rows)))]
        made[name] = split.select(sorted(chosen))
        short = [label for label, rows in of.items() if len(rows) < shots]
        if short:
            notes.append(
                f"{name}: {len(short)} labels have fewer than {shots} rows, such as {short[0]!r} with {len(of[short[0]])}."
            )
    return made, notes
