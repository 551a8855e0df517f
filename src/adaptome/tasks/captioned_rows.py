"""Rows of pictures with captions of two lengths, drawn anew in every epoch; and known layouts of such data as this one.

image, text: "a dog" or ["a dog", "a brown dog runs"], long: likewise, perhaps absent
image, question, answer                                     plain writing, without the summary
image, text, negative                                       SugarCrepe: one text is right (filename, caption, negative_caption)
image_0, image_1, caption_0, caption_1                      Winoground
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.splits import Split, Splits

#: columns of a pair of pictures with a text each
PAIR = ("image_0", "image_1", "caption_0", "caption_1")
#: other sets' names of this one's columns
NAMES = {
    "filename": "image", "file_name": "image", "caption": "text", "sentences": "text", "captions": "text",
    "negative_caption": "negative", "conversations": "long", "caption2": "text_2",
}  # fmt: skip


class Asked(NamedTuple):
    """What is compared: every picture with every text; and a question about the first picture.

    right: how many of the texts, the first ones, are the picture's.
    """

    images: list[Any]
    texts: list[str]
    question: str | None = None
    right: int = 1


def shaped(splits: Splits) -> Splits:
    """The splits with this task's names of columns."""
    made = {}
    for name, split in splits.items():
        there = split.rows.column_names
        named = {old: new for old, new in NAMES.items() if old in there and new not in there}
        taken: dict[str, str] = {}
        for old, new in named.items():
            taken.setdefault(new, old)
        rows = split.rows.rename_columns({old: new for new, old in taken.items()})
        for column in ("image", *PAIR[:2]):
            if column in rows.column_names and getattr(rows.features[column], "dtype", "") == "string":
                files = [_file(split, i, one) for i, one in enumerate(rows[column])]
                rows = rows.remove_columns(column).add_column(column, files)
        made[name] = Split(rows, split.tables, split.origin)
    return Splits(made, splits.notes)


def _file(split: Split, row: int, named: str | None) -> str | None:
    """A picture's file, from where the command runs or from its table; Winoground names its without ending, in a folder `images`.

    Raises:
        DataError: there is none; names the row.
    """
    if named is None:
        return None
    folder = Path(split.tables[int(split.origin[row][0])].file).parent
    places = [Path(named), folder / named, folder / f"{named}.png", folder / "images" / f"{named}.png"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(
            f"{split.where(row)}: no picture {named}, neither here nor in {folder}.\n"
            "  Say where they are, relative to the table: data.paths='../val2017/{filename}'."
        )
    return str(found)


def texts_of(value: Any) -> list[str]:
    """The texts in a field: one, a list, Karpathy's sentences ({raw}) or the answers of a conversation ({from, value})."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value.strip() else []
    found = []
    for one in value:
        if isinstance(one, Mapping):
            if one.get("from") in ("human", "user", "system"):
                continue
            one = one.get("raw") or one.get("value") or ""
        found += texts_of(one)
    return found


def is_composed(split: Split) -> bool:
    """Whether a split is of compositional tests alone, pairs; rows with wrong texts beside the right one are scored by recall too."""
    there = split.rows.column_names
    return all(name in there for name in PAIR)


def asked_of(row: Mapping[str, Any]) -> Asked:
    """What a row asks for."""
    if row.get("image_0") is not None:
        return Asked([row["image_0"], row["image_1"]], [str(row["caption_0"]), str(row["caption_1"])])
    negatives = texts_of(row.get("negative"))
    right = [*texts_of(row.get("text"))[:1], *texts_of(row.get("text_2"))] if negatives else []
    return Asked([row["image"]], [*right, *negatives], row.get("question"), len(right))


class Sorted(NamedTuple):
    """A row's captions by length, in tokens; or the question it asks with its answer."""

    short: list[str]
    long: list[str]
    question: str | None = None
    answer: str | None = None


def sorted_captions(
    split: Split, length: Callable[[str], int], below: int | None, most: int
) -> tuple[list[Sorted], list[str]]:
    """Every row's captions, and notes on those that are cut.

    A column `long` is of long ones whatever their length; without it the captions in `text` are told apart by their length.

    Args:
        length: tokens of a text.
        below: short ones have fewer tokens than this; None to call all of `text` short, and those of the column alone long.
        most: tokens of a caption that are read.

    Raises:
        DataError: a row without any.
    """
    there, made = split.rows.column_names, []
    names = ("text", "long", "question", "answer")
    columns = [split.rows[name] if name in there else [None] * len(split) for name in names]
    apart = below is not None and "long" not in there and "question" not in there
    cut: list[int] = []
    for i, (text, long, question, answer) in enumerate(zip(*columns, strict=True)):
        short, more = texts_of(text), texts_of(long)
        # a token has a character at least
        cut += [i] if any(len(one) > most and length(one) > most for one in (*short, *more)) else []
        if apart:
            sizes = [length(one) for one in short]
            more = [one for one, size in zip(short, sizes, strict=True) if size >= (below or 0)]
            short = [one for one, size in zip(short, sizes, strict=True) if size < (below or 0)]
        if not (short or more or answer):
            raise DataError(
                f"{split.where(i)}: no caption. A row has `text`, short or long or a list of both, perhaps `long`; or `question` and `answer`."
            )
        made.append(Sorted(short, more, question, answer))
    if not cut:
        return made, []
    told = f"{len(cut)} of {len(made)} rows have captions of more than {most} tokens, which are cut there"
    return made, [f"{told}, the first of them {split.where(cut[0])}."]


def require_alike(name: str, split: Split, captions: Sequence[Sorted]) -> None:
    """Raise DataError where some rows have captions and others none: a batch of both has no texts, and recall would be of what is not there."""
    compared = [bool(one.short or one.long) for one in captions]
    if len(set(compared)) > 1:
        raise DataError(
            f"{split.where(compared.index(False))}: a question without captions, among rows of {name} that have some. Part them into data sets of their own."
        )


class CaptionedRows:
    """A split as rows of a reader (see `tasks.summaries`).

    Args:
        reader: makes rows of pictures and texts.
        captions: every row's, see `sorted_captions`.
        training: draw one short and one long caption anew in every epoch; else all of `text`, the first long one.
    """

    def __init__(self, split: Split, reader: Any, captions: Sequence[Sorted], to_rgb: Any, training: bool, seed: int = 0):  # fmt: skip
        plain = hasattr(split.rows.features.get("image"), "shape")
        self.rows = split.rows.with_format("numpy") if plain else split.rows
        self.reader, self.captions, self.to_rgb = reader, captions, to_rgb
        self.training, self.seed, self.epoch = training, seed, 0
        self._small: dict[int, dict[str, Any]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        own, picture = self.captions[index], self._picture(index)
        if own.question is not None and not (own.short or own.long):
            return {**self.reader.asked(picture, own.question, own.answer), "texts": [], "captions": 0}
        short, long = own.short, own.long[0] if own.long else None
        if self.training:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            short = [str(rng.choice(own.short))] if own.short else []
            long = str(rng.choice(own.long)) if own.long else None
        short = short or own.long[:1]
        texts = [self.reader.caption(one) for one in short]
        return {**self.reader.going_on(picture, long), "texts": texts, "captions": len(texts)}

    def _picture(self, index: int) -> dict[str, Any]:
        """A picture's tokens and pixels; those of a few numbers are made once."""
        if index in self._small:
            return self._small[index]
        made: dict[str, Any] = self.reader.picture(self.to_rgb(self.rows[index]["image"]))
        if sum(one.numel() for one in made["pixels"].values()) <= 4096:
            self._small[index] = made
        return made
