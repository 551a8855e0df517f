"""What is compared to what when face recognition is scored: pairs, gallery and probes, or everybody, by the columns of `data.readers.faces`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.splits import Split
from adaptome.tasks.face_scores import (
    alike,
    all_pairs,
    crossed_pairs,
    fold_accuracy,
    pooled,
    searched,
    unit,
    verification,
)
from adaptome.tasks.labels import known_names, label_name

GALLERY = ("gallery", "distractor")


@dataclass(frozen=True)
class Protocol:
    """One split's.

    members: the number of each row's template [n]. people: whose each template is [t], in `names`. roles: its part, '' where there
    are none [t]. pairs: numbers of templates [m, 2], empty where everybody is compared. folds: of each pair [m].
    """

    members: np.ndarray
    people: np.ndarray
    roles: np.ndarray
    pairs: np.ndarray
    folds: np.ndarray
    names: tuple[str, ...]

    @property
    def has_roles(self) -> bool:
        return bool((self.roles != "").any())

    @property
    def gallery(self) -> np.ndarray:
        """Templates that stand in the gallery: by their roles, else each person's first."""
        if self.has_roles:
            return np.flatnonzero(np.isin(self.roles, GALLERY))
        return np.sort(np.unique(self.people, return_index=True)[1])

    @property
    def probes(self) -> np.ndarray:
        """Templates that are looked for."""
        if self.has_roles:
            return np.flatnonzero(self.roles == "probe")
        return np.setdiff1d(np.arange(len(self.people)), self.gallery)


def people_of(split: Split) -> list[str]:
    """Whose each row is, as text."""
    known = known_names(split.rows.features["label"])
    return [label_name(value, known) for value in split.rows.with_format(None)["label"]]


def column(split: Split, name: str) -> list[Any]:
    """A column; empty texts where there is none."""
    return list(split.rows[name]) if name in split.rows.column_names else [""] * len(split)


def protocol_of(split: Split, by_person: bool = False) -> Protocol:
    """What a split's columns say.

    Args:
        by_person: one template of all gallery pictures of a person, whatever templates the data have.

    Raises:
        DataError: a template of several people, a gallery without probes, or nothing that can be compared.
    """
    people, roles, given = people_of(split), column(split, "role"), column(split, "template")
    keys = [_key(row, who, role, template, by_person) for row, (who, role, template) in enumerate(zip(people, roles, given, strict=True))]  # fmt: skip
    numbers: dict[Any, int] = {}
    members = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    first = np.unique(members, return_index=True)[1]
    for row, number in enumerate(members):
        if people[row] != people[first[number]]:
            raise DataError(
                f"{split.where(row)}: the template {given[row]!r} is {people[row]!r} here and {people[first[number]]!r} in {split.where(int(first[number]))}. A template is of one person."
            )
    names, whose = np.unique([people[row] for row in first], return_inverse=True)
    pairs, folds = _pairs(column(split, "pairs"), members, split.origin[:, 0])
    made = Protocol(members, whose.reshape(-1), np.array([str(roles[row] or "") for row in first]), pairs, folds, tuple(map(str, names)))  # fmt: skip
    _check(split, made)
    return made


def _key(row: int, who: str, role: str, template: Any, by_person: bool) -> Any:
    if by_person and role == "gallery":
        return ("person", who)
    return ("template", str(role), str(template)) if template not in ("", None) else row


def _pairs(told: Sequence[str], members: np.ndarray, files: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Templates and fold of each pair; every file numbers its own pairs and folds."""
    rows: dict[tuple[int, int], list[int]] = {}
    of: dict[tuple[int, int], int] = {}
    folds: dict[tuple[int, int], int] = {}
    for row, text in enumerate(told):
        for part in str(text or "").split():
            fold, _, number = part.partition(":")
            file = int(files[row])
            rows.setdefault((file, int(number)), []).append(int(members[row]))
            of[file, int(number)] = folds.setdefault((file, int(fold)), len(folds))
    whole = [n for n, both in sorted(rows.items()) if len(both) == 2]
    return np.array([rows[n] for n in whole], int).reshape(-1, 2), np.array([of[n] for n in whole], int)


def _check(split: Split, made: Protocol) -> None:
    if len(made.pairs):
        return
    kinds = np.bincount(made.people)
    if made.has_roles and not (len(made.probes) and len(made.gallery)):
        raise DataError(
            f"{split.source}: {len(made.gallery)} gallery and {len(made.probes)} probe templates; both are needed. Give a split both files, e.g. data.test=[gallery.csv, probe.csv]."
        )
    if made.has_roles and not np.isin(made.people[made.probes], made.people[made.gallery]).any():
        raise DataError(
            f"{split.source}: none of the {len(made.probes)} probes is of a person in the gallery, such as {made.names[made.people[made.gallery[0]]]!r}."
        )
    if len(kinds) < 2 or kinds.max() < 2:
        raise DataError(
            f"{split.source}: {len(made.people)} faces of {len(kinds)} people; two people, and two faces of one of them, are needed to score anything."
        )


def scored(
    made: Protocol,
    features: np.ndarray,
    quality: np.ndarray | None,
    pool: str,
    fars: Sequence[float],
    ranks: Sequence[int],
    fprs: Sequence[float],
) -> dict[str, float]:
    """The figures of a protocol.

    Args:
        features: of its rows, in order [n, D]; of everybody without templates the same as theirs.
        quality: of its rows [n], for templates that are weighed by it.
        pool: see `face_scores.pooled`. fars: false accept rates. ranks: k. fprs: false positive identification rates.
    """
    plain = len(made.people) == len(made.members)
    templates = (
        unit(features)[np.argsort(made.members)] if plain else pooled(features, made.members, pool, quality)
    )
    if len(made.pairs):
        likeness = alike(templates, templates, *made.pairs.T)
        same = made.people[made.pairs[:, 0]] == made.people[made.pairs[:, 1]]
        told = verification(likeness, same, fars)
        return told | (
            {"accuracy": fold_accuracy(likeness, same, made.folds)}
            if len(set(made.folds.tolist())) > 1
            else {}
        )
    gallery, probes = made.gallery, made.probes
    who, whose = made.people[probes], made.people[gallery]
    if made.has_roles:
        a, b = crossed_pairs(who, whose)
        a, b = probes[a], gallery[b]
    else:
        a, b = all_pairs(made.people).T
    told = verification(alike(templates, templates, a, b), made.people[a] == made.people[b], fars)
    return told | searched(templates[probes], templates[gallery], who, whose, ranks, fprs)
