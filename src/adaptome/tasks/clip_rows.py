"""Rows of a data set of clips: numbers of classes, clips that cannot be read, streams that are missing, and each row's streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.splits import Split, Splits
from adaptome.data.video import pictures_in, taken
from adaptome.models.context_words import is_cut
from adaptome.tasks.clips import DESCRIPTION, FRAMES, Clipping, Sources, without_words


class Words(NamedTuple):
    """What is taken out of descriptions, and what reads them."""

    hidden: Sequence[str]
    processor: Any


class ClipRows:
    """The clips of a split as the collator takes them; those of training are drawn and changed anew in every epoch.

    Args:
        split: with the columns of the task. labels: numbers of the classes.
        clipping: how clips are looked at. sources: where their streams are.
        words: for descriptions. training: whether frames are drawn. augment: whether pictures are changed as well. seed: of both.
        strict: refuse a clip that cannot be read, and do not leave it out.

    Raises:
        DataError: no clip can be read; where strict, one of them.
    """

    def __init__(
        self,
        split: Split,
        labels: Sequence[int],
        clipping: Clipping,
        sources: Sources,
        words: Words,
        training: bool = False,
        augment: bool = False,
        seed: int = 0,
        strict: bool = False,
    ):
        self.split, self.clipping, self.words = split, clipping, words
        self.training, self.augment, self.seed, self.epoch = training, augment, seed, 0
        self.rows, self.unreadable, self.found = split.rows.with_format("numpy"), list[str](), list[Any]()
        self.labels: list[int] = []
        arrays = any(hasattr(split.rows.features.get(name), "shape") for name in ("video", "parsing", "landmarks"))  # fmt: skip
        light = split.rows.select_columns([c for c in split.rows.column_names if not hasattr(split.rows.features[c], "shape")])  # fmt: skip
        for index, row in enumerate(light):
            found = _light(sources.find(row, _folder(split, index)), row, split.rows.features, arrays)
            reason = _unreadable(found.get(FRAMES))
            if reason is not None and strict:
                raise DataError(f"{split.where(index)}: {reason}")
            if reason is not None:
                self.unreadable.append(reason)
                continue
            self.found.append((index, found))
            self.labels.append(int(labels[index]))
        if not self.found:
            raise DataError(
                f"{split.source}: none of the {len(split)} clips can be read. The first: {self.unreadable[0]}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, number: int) -> dict[str, Any]:
        index, found = self.found[int(number)]
        found = dict(found)
        held = [stream for stream, one in found.items() if one is ARRAY]
        if held:
            row = self.rows[index]
            found |= {s: row["video" if s == FRAMES else s] for s in held}
        rng = np.random.default_rng((self.seed, self.epoch, index)) if self.training else None
        if DESCRIPTION in found:
            found[DESCRIPTION] = without_words(str(found[DESCRIPTION]), self.words.hidden)
        seen = self.clipping.seen(found, rng, self.augment)
        seen.pop("strip")
        return {**seen, "labels": self.labels[int(number)]}

    def told(self, name: str) -> list[str]:
        """What a user should know of the split: clips left out, streams missing, descriptions cut or changed."""
        notes = []
        if self.unreadable:
            notes.append(
                f"{name}: {len(self.unreadable)} of {len(self.split)} clips cannot be read and were left out: "
                + "; ".join(self.unreadable[:3]) + ("; ..." if len(self.unreadable) > 3 else "")
            )  # fmt: skip
        for stream in self.clipping.streams:
            lacking = [index for index, found in self.found if stream not in found]
            if lacking:
                notes.append(f"{name}: {len(lacking)} of {len(self)} clips have no {stream}, such as {self.split.where(lacking[0])}.")  # fmt: skip
        if DESCRIPTION in self.clipping.streams:
            notes += self._told_of_words(name)
        return notes

    def _told_of_words(self, name: str) -> list[str]:
        texts = {str(found[DESCRIPTION]) for _, found in self.found if DESCRIPTION in found}
        hidden = sum(without_words(text, self.words.hidden) != text.strip() for text in texts)
        own = self.words.processor
        cut = sum(is_cut(own.tokenizer, text, own.longest) for text in texts)
        notes = [f"{name}: {hidden} descriptions name a class; those words were taken out (task.hide)."] if hidden else []  # fmt: skip
        return notes + ([f"{name}: {cut} descriptions are longer than {own.longest} tokens and were cut."] if cut else [])  # fmt: skip


#: stands for an array that is read when its row is asked for
ARRAY = "array of the row"


def _light(
    found: dict[str, Any], row: Mapping[str, Any], features: Mapping[str, Any], arrays: bool
) -> dict[str, Any]:
    """With a mark in place of arrays, so that they are not all held."""
    if not arrays:
        return found
    lacking = set(str(row.get("missing") or "").split("+"))
    for stream, column in ((FRAMES, "video"), ("parsing", "parsing"), ("landmarks", "landmarks")):
        if hasattr(features.get(column), "shape") and stream not in lacking:
            found[stream] = ARRAY
    return found


def _folder(split: Split, index: int) -> Path:
    """The folder of the table that a row stands in."""
    return Path(split.tables[int(split.origin[index][0])].file).parent


def _unreadable(video: Any) -> str | None:
    """Why a clip's frames cannot be read; None where the first can, or the clip has no frames."""
    if not isinstance(video, Path):
        return None
    try:
        if video.is_dir():
            taken(pictures_in(video)[0], lambda total: [0])
        else:
            taken(video, lambda total: [0] if total else [])
    except DataError as error:
        return str(error)
    return None


def based(splits: Splits, names: Sequence[str], first: int | None) -> tuple[Splits, list[str]]:
    """The splits with class numbers from 0 on, and what was found: data sets count from 0 or from 1.

    Args:
        names: of the classes; empty where the data tells them.
        first: the number of the first class; None to find it.

    Raises:
        DataError: without train, neither 0 nor the last class's number is there, so that both counts fit.
    """
    values = [v for split in splits.values() for v in split.rows.with_format(None)["label"]]
    if not names or not values or not all(isinstance(value, int) for value in values):
        return splits, []
    if all(name.isdigit() for name in names):  # the data's own numbers are the names
        return splits, []
    found = first if first is not None else int(min(values) >= 1 and max(values) == len(names))
    if first is None and "train" not in splits and 1 <= min(values) and max(values) < len(names):
        raise DataError(
            f"{next(iter(splits.values())).source}: labels are numbers from {min(values)} to {max(values)}, of {len(names)} classes: "
            f"is {names[0]} 0 or 1? Say so: task.first_label."
        )
    if not found:
        return splits, []
    made = Splits(splits, splits.notes)
    for name, split in splits.items():
        if "names" in vars(split.rows.features["label"]):
            return splits, []
        moved = [value - 1 for value in split.rows.with_format(None)["label"]]
        rows = split.rows.remove_columns(["label"]).add_column("label", moved)
        made[name] = Split(rows, split.tables, split.origin)
    return made, [f"labels are numbers from 1: 1 is {names[0]} (task.first_label)."] if first is None else []
