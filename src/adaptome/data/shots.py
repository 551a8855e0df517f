"""Few examples of each label: the protocol of few-shot studies."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split

Fewer = Literal["keep", "repeat", "error"]


def few_shot(
    splits: dict[str, Split], shots: int, seed: int, fewer: Fewer = "keep", column: str = "label"
) -> tuple[dict[str, Split], list[str]]:
    """`shots` rows of each label of train, and as many of validation, drawn by `seed`; test stays whole.

    Args:
        fewer: what becomes of a label of train with fewer rows: all of them are kept, they are repeated (drawn with replacement, as
            CoOp's protocol has it), or it is an error. Of validation all are kept.

    Returns:
        the splits, and a note where a label has fewer rows.

    Raises:
        DataError: a split has no such column; or a label with fewer rows, where that is an error.
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
        counts = {_called(split, column, label): len(rows) for label, rows in of.items() if len(rows) < shots}
        if counts and name == "train" and fewer == "error":
            raise DataError(_too_few(split, counts, shots, max(1, min(len(rows) for rows in of.values()))))
        repeated = fewer == "repeat" and name == "train"
        draw = random.Random(f"{seed} {name}")
        chosen = [
            row
            for _, rows in sorted(of.items())
            for row in (
                draw.choices(rows, k=shots) if repeated and len(rows) < shots
                else draw.sample(rows, min(shots, len(rows)))
            )
        ]  # fmt: skip
        made[name] = split.select(sorted(chosen))
        short = list(counts)
        if short:
            notes.append(
                f"{name}: {len(short)} labels have fewer than {shots} rows, such as {short[0]!r} with {counts[short[0]]}."
                + (" They are repeated." if repeated else "")
            )
    return made, notes


def _called(split: Split, column: str, value: str) -> str:
    """A label as people know it."""
    feature = split.rows.features[column]
    return str(feature.int2str(int(value))) if hasattr(feature, "int2str") else value


def _too_few(split: Split, counts: Mapping[str, int], shots: int, least: int) -> str:
    told = ", ".join(f"{label!r} has {count}" for label, count in list(counts.items())[:8])
    more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
    return (
        f"{split.source}: data.shots={shots}, and {len(counts)} labels of train have fewer rows: {told}{more}.\n"
        f"  Take data.shots={least} or fewer, draw with replacement (data.fewer=repeat), or take what there is (data.fewer=keep)."
    )
