"""What tasks share whose inputs come in several modalities, some of which may be missing: sets of them, drawn in training, all seen in tests.

A set is written as its members in alphabetical order, joined by '+': `depth+rgb`. A modality that is not available in a row is filled with a
constant behind all preparation (0 unless told otherwise), so that nothing in pixels is nothing to the network too. Adapters are told what is available as
the fact `available` (see `ad.steer`): the set's name where all rows of a batch have the same, else a bool tensor [batch, modalities], with the columns'
names as the fact `modalities`.

Figures are told for every set, as `<figure>@<set>`, and as their mean over sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split
from adaptome.tasks.base import TaskOptions
from adaptome.tasks.showing import Given, path_of

AVAILABLE = "available"
Set = frozenset[str]


def key(members: Iterable[str]) -> str:
    """The name of a set.

    >>> key(["rgb", "depth"])
    'depth+rgb'
    """
    return "+".join(sorted(members))


class SetOptions(TaskOptions):
    modalities: list[str] = Field(
        min_length=2, description="columns of the data, in the order of the model's inputs"
    )
    required: list[str] = Field(
        default_factory=list,
        description="modalities that are never missing: an input without one is refused, no set without one is trained or tested",
    )
    train_on: Literal["full", "any", "missing"] | list[str] = Field(
        default="full",
        description="sets that training draws from: all modalities; any set; those that lack one or more; or sets by name, e.g. [rgb, depth+rgb]",
    )
    test_on: list[str] | None = Field(default=None, description="sets that are tested; default: all")
    draw: Literal["batch", "row"] = Field(
        default="batch", description="draw a set for a whole batch, or for each of its rows"
    )
    draw_seed: int = Field(default=0, ge=0, description="of the sets that are drawn")
    fill: dict[str, float] = Field(
        default_factory=dict,
        description="modality -> what stands for it behind normalisation where it is missing; default: 0",
    )

    @model_validator(mode="after")
    def _known(self) -> SetOptions:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError("modalities names one twice")
        for field, names in (("required", self.required), ("fill", self.fill)):
            for name in names:
                self._check(field, name)
        for field, told in (("train_on", self.train_on), ("test_on", self.test_on)):
            for written in told if isinstance(told, list) else []:
                members = written.split("+")
                for name in members:
                    self._check(field, name)
                if lacking := [name for name in self.required if name not in members]:
                    raise ValueError(f"{field}: the set {written!r} lacks {lacking[0]!r}, which is required")
        if self.train_on == "missing" and len(self.sets()) < 2:
            raise ValueError("train_on: nothing can be missing, for all modalities are required")
        return self

    def _check(self, field: str, name: str) -> None:
        if name not in self.modalities:
            raise ValueError(
                f"{field} names {name!r}, which is none of {', '.join(self.modalities)}.{did_you_mean(name, self.modalities)}"
            )

    def sets(self) -> list[Set]:
        """All sets that hold what is required, the smallest first."""
        sizes = range(1, len(self.modalities) + 1)
        found = [frozenset(s) for n in sizes for s in itertools.combinations(self.modalities, n)]
        return [s for s in found if s.issuperset(self.required)]

    def trained(self) -> list[Set]:
        """Those that training draws from."""
        if isinstance(self.train_on, list):
            return [frozenset(written.split("+")) for written in self.train_on]
        whole = frozenset(self.modalities)
        return {"full": [whole], "any": self.sets(), "missing": [s for s in self.sets() if s != whole]}[
            self.train_on
        ]

    def tested(self) -> list[Set]:
        if self.test_on is None:
            return self.sets()
        return [frozenset(written.split("+")) for written in self.test_on]

    def check_given(self, given: Iterable[str], where: str) -> Set:
        """The set of what is given.

        Raises:
            DataError: nothing, a modality that is none, or one missing that is required.
        """
        members = frozenset(given)
        for name in members:
            if name not in self.modalities:
                raise DataError(
                    f"{where}: {name!r} is no modality of this run.{did_you_mean(name, self.modalities)} It takes {', '.join(self.modalities)}."
                )
        lacking = [name for name in self.required if name not in members]
        if lacking or not members:
            told = f"cannot do without {', '.join(lacking)}" if lacking else "needs one modality at least"
            raise DataError(
                f"{where}: this run {told}; given: {', '.join(sorted(members)) or 'nothing'}. It takes {', '.join(self.modalities)}."
            )
        return members


class SetRows:
    """Rows of a split, each with the modalities that it is seen with.

    Training has every row once, with a set that is drawn anew in every epoch; a test has it once for each set of which it has all.

    Args:
        read: the row's number -> its columns, ready for the collator.
        training: draw sets.
    """

    def __init__(
        self, split: Split, options: SetOptions, read: Callable[..., dict[str, Any]], training: bool
    ):
        self.options, self.read, self.training, self.epoch = options, read, training, 0
        self.own = present(split, options)
        self.pairs: list[tuple[int, Set]] = []
        if not training:
            self.pairs = [(row, s) for s in options.tested() for row, own in enumerate(self.own) if s <= own]
            if not self.pairs:
                raise DataError(f"{split.source}: no row has all modalities of any set that is tested.")

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.own) if self.training else len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.training:
            row, chosen = self.pairs[int(index)]
            return {**self.read(row), "present": self.own[row], AVAILABLE: chosen}
        row, rng = int(index), np.random.default_rng((self.options.draw_seed, self.epoch, int(index)))
        able = [s for s in self.options.trained() if s <= self.own[row]]
        chosen = able[int(rng.integers(len(able)))] if able else self.own[row]
        shared = self.options.draw == "batch"
        return {**self.read(row, rng), "present": self.own[row], AVAILABLE: chosen, "shared": shared}

    def notes(self, name: str) -> list[str]:
        """What is told of rows that lack modalities themselves."""
        lacking = sum(len(own) < len(self.options.modalities) for own in self.own)
        return [f"{lacking} of {len(self.own)} rows of {name} lack a modality."] if lacking else []


def present(split: Split, options: SetOptions) -> list[Set]:
    """Which modalities each row of a split has: None and empty texts are none.

    Raises:
        DataError: a row with none, or without one that is required.
    """
    rows = split.rows
    there = {}
    for name in options.modalities:
        values = rows.select_columns([name]).with_format("arrow")[:].column(name)
        there[name] = ~values.is_null().to_numpy(zero_copy_only=False)
        if str(values.type) in ("string", "large_string"):
            there[name] &= np.array([bool(text) for text in values.to_pylist()])
    made = []
    for row in range(len(rows)):
        members = [name for name in options.modalities if there[name][row]]
        made.append(options.check_given(members, split.where(row)))
    return made


def chosen_sets(rows: Sequence[Mapping[str, Any]]) -> list[Set]:
    """The set of every row of a batch: its own, or the first one's in all that have it."""
    first = rows[0][AVAILABLE]
    shared = rows[0].get("shared", False)
    return [first if shared and first <= row["present"] else row[AVAILABLE] for row in rows]


def mask_of(sets: Sequence[Set], modalities: Sequence[str]) -> Tensor:
    """Availability [batch, modalities]."""
    return torch.tensor([[name in one for name in modalities] for one in sets])


def filled(values: Tensor, there: Tensor, fill: float) -> Tensor:
    """Values [batch, ...] with the rows that are not `there` [batch] filled."""
    return torch.where(
        there.view(-1, *[1] * (values.dim() - 1)), values, torch.tensor(fill, dtype=values.dtype)
    )


def facts_of(available: Tensor, modalities: Sequence[str]) -> dict[str, Any]:
    """What adapters are told of a batch."""
    first = available[0]
    if bool((available == first).all()):
        return {AVAILABLE: key(name for name, there in zip(modalities, first.tolist(), strict=True) if there)}
    return {AVAILABLE: available, "modalities": tuple(modalities)}


# -- figures -----------------------------------------------------------------------------------------------------------


def numbered(available: Tensor) -> Tensor:
    """The number of each row's set [batch], its bits being the modalities in order."""
    return (available.long() << torch.arange(available.shape[1], device=available.device)).sum(1)


def by_set(
    numbers: np.ndarray, options: SetOptions, figures: Callable[[np.ndarray], Mapping[str, float]]
) -> dict[str, float]:
    """The figures' means over sets, and of each set as `<figure>@<set>`.

    Args:
        numbers: of each row's set (see `numbered`).
        figures: the places of some rows -> their figures.
    """
    found: dict[str, Mapping[str, float]] = {}
    for members in options.tested():
        bits = sum(1 << i for i, name in enumerate(options.modalities) if name in members)
        places = np.flatnonzero(numbers == bits)
        if len(places):
            found[key(members)] = figures(places)
    names = list(next(iter(found.values()), {}))
    means = {name: float(np.mean([one[name] for one in found.values()])) for name in names}
    return means | {f"{name}@{s}": float(one[name]) for s, one in found.items() for name in names}


# -- what a user gives -------------------------------------------------------------------------------------------------


def given_by_name(words: Sequence[str], options: SetOptions) -> list[Given]:
    """Inputs from words `modality=value`, a new one wherever a modality comes again; folders stand for their files of one name.

    A name that only some of the folders have is an input without the others' modalities.

    Raises:
        DataError: a word without a modality's name, or one that is none.
    """
    groups: list[dict[str, str]] = [{}]
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in options.modalities:
            example = " ".join(f"{m}=..." for m in options.modalities)
            raise DataError(
                f"{word!r} does not say of which modality it is.{did_you_mean(name, options.modalities)} Write {example}, any of them."
            )
        if name in groups[-1]:
            groups.append({})
        groups[-1][name] = value
    found: list[Given] = []
    for group in groups:
        options.check_given(group, " ".join(words))
        paths = {m: path_of(v) for m, v in group.items()}
        folders = {m: path for m, path in paths.items() if path is not None and path.is_dir()}
        found += _of_folders(folders, options) if len(folders) == len(group) else [_named(group)]
    return found


def _named(group: Mapping[str, str]) -> Given:
    return Given(" ".join(f"{m}={v}" for m, v in group.items()), dict(group))


def _of_folders(folders: Mapping[str, Path], options: SetOptions) -> list[Given]:
    """An input for each name of a file in any of the folders."""
    stems: dict[str, dict[str, str]] = {}
    for name, folder in folders.items():
        for file in sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")):
            stems.setdefault(file.stem, {})[name] = str(file)
    if not stems:
        raise DataError(f"the folders {', '.join(map(str, folders.values()))} hold no files.")
    for stem, group in stems.items():
        options.check_given(group, stem)
    return [_named(group) for _, group in sorted(stems.items())]
