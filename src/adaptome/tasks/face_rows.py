"""The rows that face recognition works on: what is left out and told, whose names may meet, and the scale of their quality."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.faces.quality import scale_of
from adaptome.data.splits import Split, Splits
from adaptome.tasks.face_protocols import column, people_of
from adaptome.tasks.face_reading import FaceReader, Quality, broken_rows

#: training pictures whose quality tells the scale
SAMPLE = 2000
#: how many of what is left out are named
NAMED = 3


def usable(splits: Splits, reader: FaceReader, skip: bool, check: bool) -> tuple[Splits, list[str]]:
    """The splits without the rows that cannot be used, pictures as files, and what is told of these.

    Args:
        skip: leave out pictures that no landmarks are known of; else they are an error.
        check: decode every picture.

    Raises:
        DataError: a picture without landmarks; names it, and says how many there are.
    """
    made, notes = Splits({}, splits.notes), list[str]()
    for name, split in splits.items():
        split = _as_files(split)
        faceless = _faceless(split, reader)
        if faceless and not skip:
            _refuse(name, split, reader, faceless)
        if faceless:
            where = ", ".join(split.where(row) for row in faceless[:NAMED])
            file = reader.landmarks.path if reader.landmarks else "no file"
            notes.append(
                f"{name}: {len(faceless)} pictures of whose face {file} does not tell are left out: {where}."
            )
            split = split.select(np.setdiff1d(np.arange(len(split)), faceless))
        broken = broken_rows(split.rows, reader) if check and len(split) else {}
        if broken:
            told = "; ".join(f"{split.where(row)}: {why}" for row, why in list(broken.items())[:NAMED])
            notes.append(f"{name}: {len(broken)} pictures cannot be decoded and are left out: {told}.")
            split = split.select(np.setdiff1d(np.arange(len(split)), list(broken)))
        if not len(split):
            raise DataError(
                f"{splits[name].source}: no picture of the {name} split can be used. {' '.join(notes)}"
            )
        made[name] = split
    return made, notes


def _as_files(split: Split) -> Split:
    """Pictures by their paths or bytes, so that their names are known and a broken one is told by it."""
    feature = split.rows.features["image"]
    if not isinstance(feature, datasets.Image):
        return split
    return Split(split.rows.cast_column("image", datasets.Image(decode=False)), split.tables, split.origin)


def _faceless(split: Split, reader: FaceReader) -> list[int]:
    if reader.landmarks is None or reader.whole:
        return []
    images, boxes = split.rows["image"], column(split, "box")
    return [
        row for row, one in enumerate(images) if not boxes[row] and reader.landmarks.of(_name(one)) is None
    ]


def _name(one: Any) -> str:
    return str(one.get("path") or "") if isinstance(one, dict) else str(one) if isinstance(one, str) else ""


def _refuse(name: str, split: Split, reader: FaceReader, rows: list[int]) -> None:
    assert reader.landmarks is not None
    more = f" {len(rows)} of the {name} split's {len(split)} pictures have none." if len(rows) > 1 else ""
    try:
        reader.landmarks.require(_name(split.rows[rows[0]]["image"]))
    except DataError as error:
        raise DataError(f"{error}{more}") from error


def named_apart(splits: Splits, how: str) -> Splits:
    """Training sets whose people have the same names: refused, or each set's own people.

    Raises:
        DataError: names one, and the sets.
    """
    split = splits.get("train")
    if split is None or len(split.tables) < 2 or how == "same":
        return splits
    people, sets = people_of(split), split.origin[:, 0]
    if how == "different":
        rows = split.rows.remove_columns("label")
        rows = rows.add_column("label", [f"{set_}/{who}" for who, set_ in zip(people, sets, strict=True)])
        return Splits({**splits, "train": Split(rows, split.tables, split.origin)}, splits.notes)
    first: dict[str, int] = {}
    for row, who in enumerate(people):
        if sets[first.setdefault(who, row)] != sets[row]:
            a, b = (split.tables[int(sets[r])].file for r in (first[who], row))
            raise DataError(
                f"{split.where(row)}: a person called {who!r} is in both {a} and {b}, and only you know whether it is the same one.\n"
                "  Say so: task.same_names=same, or task.same_names=different where each set has people of its own."
            )
    return splits


def require_apart(splits: Splits, allowed: bool) -> None:
    """Nobody who is scored may have been trained on.

    Raises:
        DataError: names one, and where.
    """
    if allowed or "train" not in splits:
        return
    trained = dict(zip(people_of(splits["train"]), range(len(splits["train"])), strict=True))
    for name in ("validation", "test"):
        split = splits.get(name)
        people = people_of(split) if split is not None else []
        both = [row for row, who in enumerate(people) if who in trained]
        if split is not None and both:
            row = both[0]
            raise DataError(
                f"{split.where(row)}: {people[row]!r} is in train too ({splits['train'].where(trained[people[row]])}), "
                f"as are {len({people[r] for r in both})} of the {len(set(people))} people of {name}. Recognition is scored on people not trained on.\n"
                "  Hold whole people out: data.group=label. Are they others of the same name? Then task.overlap=allow."
            )


def scale_on(split: Split, reader: FaceReader, quality: Quality) -> tuple[float, float]:
    """Factor and shift of the scores, by those of the training pictures, at most 2000 of them drawn at random."""
    rows = split.rows
    rows = rows.with_format("numpy") if hasattr(rows.features["image"], "shape") else rows
    chosen = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    scores = [quality.raw(row, reader(row)) for row in (rows[int(n)] for n in chosen)]
    return scale_of(scores, spread=quality.measure in ("sharpness", "resolution"))
